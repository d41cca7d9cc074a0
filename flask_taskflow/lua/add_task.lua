-- Store a pending task and the codes it starts with, unless a limit forbids the messages.
-- KEYS: task, pending, recipients, recipients:expiry, then see sending.lua
-- ARGV: id, ttl ms, priority, channel, limits, list of fields and values to store,
--       list of (method, mac of the address or empty, nonce, digest) for each message
-- Returns: ok, created ms, expires ms | send_limit, wait ms

local now = now_ms()
local id, ttl, priority, channel, limits = take(), take_number(), take(), take(), take_limits()
local stored, messages = take_list(), take_list()
local expires = now + ttl

if #messages / 4 > limits.max_sends then return { 'send_limit', int(ttl) } end
local macs = {}
for i = 2, #messages, 4 do macs[#macs + 1] = messages[i] end
local wait = sends_wait(KEYS[3], macs, limits, now)
if wait then return { 'send_limit', int(wait) } end
check_sends(4)

for i = 1, #messages, 4 do
  local code = { nonce = messages[i + 2], digest = messages[i + 3], out = 1 }
  code.ends = math.min(now + limits.otp_ttl, expires)
  for _, item in ipairs(sent_fields(messages[i], 1, code, limits, now)) do
    stored[#stored + 1] = item
  end
end
for _, item in ipairs({ 'created', int(now), 'expires', int(expires), 'sends', int(#messages / 4) }) do
  stored[#stored + 1] = item
end

redis.call('HSET', KEYS[1], unpack(stored))
redis.call('PEXPIREAT', KEYS[1], int(expires + 60000))
redis.call('ZADD', KEYS[2], int(expires), id)
expire_with_last(KEYS[2])
count_sends(KEYS[3], KEYS[4], macs, limits, now)
for i = 1, #messages, 4 do post(4, (i + 3) / 4, id, messages[i], priority, channel, now) end
trim(KEYS[2], KEYS[3], KEYS[4], now)
return { 'ok', int(now), int(expires) }
