-- Put another code in the place of one that was just issued and not sent.
-- KEYS: task
-- ARGV: method, nonce of the code to replace, nonce, digest, code life ms
-- Returns: stale | ok

local now = now_ms()
local method, old, nonce, digest, otp_ttl = take(), take(), take(), take(), take_number()
local got = redis.call('HMGET', KEYS[1], 'status', 'expires', method .. '.nonce', method .. '.posted')
if ended(got[1], got[2], now) or got[3] ~= old then return { 'stale' } end

free(KEYS[1], {})
redis.call('HSET', KEYS[1], method .. '.nonce', nonce, method .. '.digest', digest,
  method .. '.out', 1, method .. '.until', int(math.min(now + otp_ttl, tonumber(got[2]))))
if got[4] == old then redis.call('HSET', KEYS[1], method .. '.posted', nonce) end
return { 'ok' }
