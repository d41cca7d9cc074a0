-- Read a task.
-- KEYS: task
-- Returns: unknown | ok, now, fields

local task = redis.call('HGETALL', KEYS[1])
if #task == 0 then return { 'unknown' } end
return { 'ok', int(now_ms()), task }
