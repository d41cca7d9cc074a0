-- End a task whose reserved attempt was right, and store one delivery per callback.
-- KEYS: see verification.lua
-- ARGV: id, method, channel, retention ms, epoch of the callbacks, list of callbacks,
--       list of the caller's own callbacks
-- Returns: unknown | finished, status | expired | resubscribe, list of registered callbacks |
--          ok, now, fields

local now = now_ms()
local id, method, channel, retention = take(), take(), take(), take_number()
local callbacks = { epoch = take(), names = take_list(), own = take_list() }
local got = redis.call('HMGET', KEYS[1], 'status', 'expires', method .. '.field')
local over = ended(got[1], got[2], now)
if over then return over end
return succeed(id, method, channel, retention, callbacks, mac_of(got[3]), now)
