-- List dead letters of one callback, the newest first.
-- Needs: base, deliveries
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: only what died by then, ms or +inf; how many to skip, how many to look at,
--       what the error must have in it or empty
-- Returns: ok, how many were looked at, then for each that fits: id, died ms, failures, lost, error

local keys, by, skip, count, text = key_sets(1)[1], take(), take_number(), take_number(), take()
local dead = redis.call('ZREVRANGEBYSCORE', keys.dead, by, '-inf', 'WITHSCORES', 'LIMIT', skip, count)
local reply = { 'ok', #dead / 2 }
for i = 1, #dead, 2 do
  local id = id_of(dead[i])
  local message = redis.call('HGET', keys.error, id) or ''
  if string.find(message, text, 1, true) then
    local meta = read_meta(keys.meta, id) or { failures = 0, lost = 0 }
    append(reply, { id, dead[i + 1], meta.failures, meta.lost, message })
  end
end
return reply
