-- Report that a send delivered a code: it is done.
-- If it is not the caller's any more, it counted as failed, or another attempt runs in its place and may
-- fail: the code that was delivered all the same stays in force, or is in force again.
-- Needs: base, deliveries, happenings
-- KEYS: task, then ready, delay, lease, dead, meta, body, error of the sends by the method
-- ARGV: id, token, method, nonce of the code
-- Returns: ok | gone (there is no such send) | stale

local task, keys = KEYS[1], key_sets(2)[1]
local id, token, method, nonce = take(), take_number(), take(), take()
local meta = read_meta(keys.meta, id)
if meta and meta.token == token then
  remove(keys, meta.member)
  redis.call('HDEL', task, method .. '.posted')
  happened.sent(id, method, now_ms())
  return { 'ok' }
end

local got = redis.call('HMGET', task, 'status', method .. '.nonce', method .. '.out')
if got[1] == 'PENDING' and got[2] == nonce then
  free(task, { method .. '.failed', meta and '' or method .. '.posted' })
  redis.call('HSET', task, method .. '.out', int((tonumber(got[3]) or 0) + 1))
end
return { meta and 'stale' or 'gone' }
