-- Read several tasks.
-- Needs: base
-- KEYS: tasks
-- Returns: ok, now, then the fields of each, none of one that is unknown

local reply = { 'ok', int(now_ms()) }
for _, task in ipairs(KEYS) do append(reply, { redis.call('HGETALL', task) }) end
return reply
