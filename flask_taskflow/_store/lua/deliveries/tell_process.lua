-- Say that a process lives and what it does, so that an operator sees it; forget who was silent for ten minutes.
-- Needs: base
-- KEYS: processes
-- ARGV: list of (the process and its part, version and queues in one)
-- Returns: ok
-- A field holds: when it was heard last, when first (ms), version, queues.

local key, told, now, silence = KEYS[1], take_list(), now_ms(), 600000
for i = 1, #told, 2 do
  local held = redis.call('HGET', key, told[i])
  local first = held and string.match(held, '^%d+ (%d+) ') or int(now)
  redis.call('HSET', key, told[i], int(now) .. ' ' .. first .. ' ' .. told[i + 1])
end
for _, other in ipairs(redis.call('HKEYS', key)) do
  local heard = tonumber(string.match(redis.call('HGET', key, other), '^%d+')) or 0
  if now - heard > silence then redis.call('HDEL', key, other) end
end
redis.call('PEXPIRE', key, silence)
return { 'ok' }
