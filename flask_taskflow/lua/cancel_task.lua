-- End a pending task.
-- KEYS: task, pending
-- ARGV: id, retention ms
-- Returns: unknown | finished, status | expired | ok, now, fields

local now = now_ms()
local id, retention = take(), take_number()
local got = redis.call('HMGET', KEYS[1], 'status', 'expires')
local over = ended(got[1], got[2], now)
if over then return over end

finish(KEYS[1], KEYS[2], id, 'CANCELLED', retention)
return { 'ok', int(now), redis.call('HGETALL', KEYS[1]) }
