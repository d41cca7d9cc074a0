-- Count an attempt before a code is checked that the server did not make.
-- KEYS: see verification.lua, without callbacks
-- ARGV: id, method, retention ms, most attempts, failure window ms
-- Returns: unknown | finished, status | expired | not_allowed, left | locked | ok, now, fields, left

local now = now_ms()
local id, method, retention = take(), take(), take_number()
local most, window = take_number(), take_number()

local got = redis.call('HMGET', KEYS[1], 'status', 'expires', method .. '.field')
local over = closed(got[1], got[2], now)
if over then return over end

local left = most - count_wrong(KEYS[1], mac_of(got[3]), window, now)
-- One that was reserved before may be right and on its way: it ends the task, or `lock` does.
if left < 0 then return { 'finished', 'LOCKED' } end
if left == 0 and not got[3] then
  finish(KEYS[1], KEYS[2], id, 'LOCKED', retention)
  return { 'locked' }
end
if not got[3] then return { 'not_allowed', left } end
return { 'ok', int(now), redis.call('HGETALL', KEYS[1]), left }
