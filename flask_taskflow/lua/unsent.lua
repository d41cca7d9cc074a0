-- After failed sends: clear the cooldown, and disarm the codes that no send has delivered.
-- KEYS: task
-- ARGV: list of (method, nonce of the code that was to be sent)
-- Returns: ok

local failed = take_list()
for i = 1, #failed, 2 do
  local method = failed[i]
  local got = redis.call('HMGET', KEYS[1], method .. '.nonce', method .. '.out')
  if got[1] == failed[i + 1] then
    free(KEYS[1], { method .. '.next' })
    if tonumber(got[2]) > 0 then redis.call('HINCRBY', KEYS[1], method .. '.out', -1) end
  end
end
return { 'ok' }
