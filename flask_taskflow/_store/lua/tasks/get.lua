-- Read a task.
-- Needs: base, tasks
-- KEYS: task
-- Returns: unknown | ok, now, fields

local reply = answer('ok', KEYS[1], now_ms())
if #reply[3] == 0 then return { 'unknown' } end
return reply
