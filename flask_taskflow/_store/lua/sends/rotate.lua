-- Put another code in the place of one that was just issued and not sent.
-- Needs: base, tasks
-- KEYS: task
-- ARGV: method, nonce of the code to replace, nonce, digest, issued, code life ms
-- Returns: stale | ok

local task, now = KEYS[1], now_ms()
local method, old, nonce, digest, issued, otp_ttl = take(), take(), take(), take(), take(), take_number()
local got = redis.call('HMGET', task, 'status', 'expires', method .. '.nonce', method .. '.posted')
if ended(got[1], got[2], now) or got[3] ~= old then return { 'stale' } end

free(task, {})
redis.call('HSET', task, method .. '.nonce', nonce, method .. '.digest', digest,
  method .. '.issued', issued,
  method .. '.out', 1, method .. '.until', int(math.min(now + otp_ttl, tonumber(got[2]))))
if got[4] == old then redis.call('HSET', task, method .. '.posted', nonce) end
return { 'ok' }
