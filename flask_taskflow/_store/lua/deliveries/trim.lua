-- Forget what is over: expired tasks, recipients, old dead letters; at most 1,000 of each.
-- Needs: base, deliveries, recipients, soundness, trimming
-- KEYS: pending, the four of recipients.lua, then ready, delay, lease, dead, meta, body, error of each callback
-- ARGV: how long dead letters are kept, ms
-- Returns: ok, 1 if there may be more, dead letters forgotten

local pending, recipients = KEYS[1], counts_at(2)
local now, retention = now_ms(), take_number()
local more, forgotten = trim(pending, recipients, now), 0
for _, keys in ipairs((sound_ones(key_sets(6)))) do
  local old = redis.call('ZRANGEBYSCORE', keys.dead, '-inf', int(now - retention), 'LIMIT', 0, 1000)
  for _, member in ipairs(old) do remove(keys, member) end
  more, forgotten = more or #old == 1000, forgotten + #old
end
return { 'ok', more and 1 or 0, forgotten }
