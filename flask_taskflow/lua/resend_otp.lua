-- Count one more message and answer with the code it carries: the one in force, or the new one.
-- KEYS: task, recipients, recipients:expiry, then see sending.lua
-- ARGV: id, method, channel, whether the code in force may be kept (1 or 0), nonce, digest, limits
-- Returns: unknown | finished, status | expired | not_allowed | no_address | too_soon, wait ms |
--          send_limit, wait ms | ok, now, fields

local now = now_ms()
local id, method, channel = take(), take(), take()
local keep, nonce, digest, limits = take() == '1', take(), take(), take_limits()
local task = load(KEYS[1])
local over = ended(task.status, task.expires, now)
if over then return over end

local field = task[method .. '.field']
if not field then return { 'not_allowed' } end
local mac = task['mac.' .. field]
if field ~= '' and not mac then return { 'no_address' } end

local wait = (tonumber(task[method .. '.next']) or 0) - now
if wait > 0 then return { 'too_soon', int(wait) } end
local expires = tonumber(task.expires)
if tonumber(task.sends) >= limits.max_sends then return { 'send_limit', int(expires - now) } end
wait = sends_wait(KEYS[2], { mac or '' }, limits, now)
if wait then return { 'send_limit', int(wait) } end
check_sends(3)

local ends = tonumber(task[method .. '.until']) or 0
local code = { nonce = nonce, digest = digest, ends = math.min(now + limits.otp_ttl, expires), out = 1 }
if keep and task[method .. '.nonce'] and ends - now >= 60000 then
  code.nonce, code.digest, code.ends = task[method .. '.nonce'], task[method .. '.digest'], ends
  local counted = is_posted(3, 1, id) and task[method .. '.posted'] == code.nonce
  code.out = tonumber(task[method .. '.out']) + (counted and 0 or 1)
end
local sends = (tonumber(task[method .. '.sends']) or 0) + 1
redis.call('HSET', KEYS[1], 'sends', int(tonumber(task.sends) + 1),
  unpack(sent_fields(method, sends, code, limits, now)))
count_sends(KEYS[2], KEYS[3], { mac or '' }, limits, now)
post(3, 1, id, method, task.priority, channel, now)
return { 'ok', int(now), redis.call('HGETALL', KEYS[1]) }
