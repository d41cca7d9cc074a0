-- After failed sends: clear the cooldown, and disarm the codes that no send has delivered.
-- Needs: base, happenings
-- KEYS: task
-- ARGV: id, list of (method, nonce of the code that was to be sent, why it was not)
-- Returns: ok

local task, id, failed = KEYS[1], take(), take_list()
for i = 1, #failed, 3 do
  local method, nonce, cause = unpack(failed, i, i + 2)
  local got = redis.call('HMGET', task, method .. '.nonce', method .. '.out')
  if got[1] == nonce then
    free(task, { method .. '.next' })
    if tonumber(got[2]) > 0 then redis.call('HINCRBY', task, method .. '.out', -1) end
    happened.unsent(id, method, 'failed', 'send_failed', cause, now_ms())
  end
end
return { 'ok' }
