-- List dead letters of one callback, the newest first.
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: how many
-- Returns: ok, then for each: id, died ms, failures, lost, enqueued ms, error

local keys, reply = keys_of(0), { 'ok' }
local dead = redis.call('ZREVRANGE', keys.dead, 0, take_number() - 1, 'WITHSCORES')
for i = 1, #dead, 2 do
  local id = id_of(dead[i])
  local meta = read_meta(keys.meta, id) or { failures = 0, lost = 0, enqueued = '0' }
  for _, item in ipairs({ id, dead[i + 1], meta.failures, meta.lost, meta.enqueued,
    redis.call('HGET', keys.error, id) or '' }) do
    reply[#reply + 1] = item
  end
end
return reply
