-- Lock a pending task whose last reserved attempt was wrong.
-- KEYS: task, pending
-- ARGV: id, retention ms, most attempts
-- Returns: ok

local id, retention, most = take(), take_number(), take_number()
local got = redis.call('HMGET', KEYS[1], 'status', 'attempts')
if got[1] == 'PENDING' and tonumber(got[2]) >= most then
  finish(KEYS[1], KEYS[2], id, 'LOCKED', retention)
end
return { 'ok' }
