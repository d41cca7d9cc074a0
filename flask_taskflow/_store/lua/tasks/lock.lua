-- Lock a pending task whose last reserved attempt was wrong.
-- Needs: base, finishing, loaded
-- KEYS: task, pending
-- ARGV: id, retention ms, most attempts
-- Returns: ok

local task, pending = KEYS[1], KEYS[2]
local id, retention, most = take(), take_number(), take_number()
local got = redis.call('HMGET', task, 'status', 'attempts')
if got[1] == 'PENDING' and tonumber(got[2]) >= most then
  finish(load(task), task, pending, id, 'LOCKED', retention, now_ms())
end
return { 'ok' }
