-- Say which secret keys a process has, so that an operator can compare; forget what nobody said for a day.
-- Needs: base
-- KEYS: fingerprints
-- ARGV: the fingerprints of the process's keys, the newest first, in one
-- Returns: ok

local key, now, day = KEYS[1], now_ms(), 86400000
redis.call('HSET', key, take(), int(now))
for _, own in ipairs(redis.call('HKEYS', key)) do
  local said = tonumber(redis.call('HGET', key, own)) or 0
  if now - said > day then redis.call('HDEL', key, own) end
end
redis.call('PEXPIRE', key, day)
return { 'ok' }
