-- Consume a code: count a wrong one, or end the task and store one delivery per callback.
-- KEYS: see verification.lua
-- ARGV: id, method, channel, retention ms, epoch of the callbacks, list of callbacks,
--       list of the caller's own callbacks, most attempts, failure window ms,
--       list of digests (one per secret key)
-- Returns: unknown | finished, status | expired | wrong, left | code_expired, left |
--          not_allowed, left | locked | resubscribe, list of registered callbacks | ok, now, fields

local now = now_ms()
local id, method, channel, retention = take(), take(), take(), take_number()
local callbacks = { epoch = take(), names = take_list(), own = take_list() }
local most, window, digests = take_number(), take_number(), take_list()

local got = redis.call('HMGET', KEYS[1], 'status', 'expires', method .. '.digest',
  method .. '.until', method .. '.out', method .. '.field')
local over = closed(got[1], got[2], now)
if over then return over end
local field = got[6]
local mac = mac_of(field)

local armed = got[3] and tonumber(got[5]) > 0
local word = (not field and 'not_allowed') or (not armed and 'wrong')
  or (now >= tonumber(got[4]) and 'code_expired') or 'wrong'
for _, digest in ipairs(digests) do
  if armed and word == 'wrong' and digest == got[3] then word = 'right' end
end
if word == 'right' then
  return succeed(id, method, channel, retention, callbacks, mac, now)
end

local left = most - count_wrong(KEYS[1], mac, window, now)
if left > 0 then return { word, left } end
finish(KEYS[1], KEYS[2], id, 'LOCKED', retention)
return { 'locked' }
