-- Forget what is over: expired tasks, recipients, old dead letters; at most 1,000 of each.
-- KEYS: pending, recipients, recipients:expiry,
--       then ready, delay, lease, dead, meta, body, error of each callback
-- ARGV: how long dead letters are kept, ms
-- Returns: ok, 1 if there may be more, dead letters forgotten

local now, retention = now_ms(), take_number()
local more, forgotten = trim(KEYS[1], KEYS[2], KEYS[3], now), 0
for _, i in ipairs((sound_ones(3, (#KEYS - 3) / 7))) do
  local keys = keys_of(3 + 7 * i)
  local old = redis.call('ZRANGEBYSCORE', keys.dead, '-inf', int(now - retention), 'LIMIT', 0, 1000)
  for _, member in ipairs(old) do remove(keys, member) end
  more, forgotten = more or #old == 1000, forgotten + #old
end
return { 'ok', more and 1 or 0, forgotten }
