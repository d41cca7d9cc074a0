-- Begin what a verified task was kept for, once; or return what it answered a short time ago.
-- Needs: base
-- KEYS: task, its answer
-- Returns: begin | unknown | kept, the answer | begun, ms ago

local task, now = KEYS[1], now_ms()
local kept = redis.call('GET', KEYS[2])
if kept then return { 'kept', kept } end
if redis.call('HGET', task, 'status') ~= 'SUCCESS' then return { 'unknown' } end
local begun = tonumber(redis.call('HGET', task, 'begun'))
if begun then return { 'begun', int(now - begun) } end
redis.call('HSET', task, 'begun', int(now))
return { 'begin' }
