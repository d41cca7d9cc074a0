-- Report an attempt to send that was refused for now, or was written off: it is tried again later. If a
-- send has only been refused for so long, the next method is tried beside it, unless a code is delivered or
-- on its way by another.
-- Needs: base, deliveries, falling, happenings, limits, loaded, recipients, sending, tasks
-- KEYS: task, pending, the four of recipients.lua, then see sending.lua
-- ARGV: id, token, method, channel, limits, list of (method, nonce, digest, issued) for each method that has keys,
--       delay ms, ms of refusals after which the next method is tried (-1: never), the last error, its class,
--       whether the attempt was written off (1 or 0)
-- Returns: stale | again (it was written off before: nothing is changed) | ok | next, method

local key, recipients = KEYS[1], counts_at(3)
local now, id, token, method, channel = now_ms(), take(), take_number(), take(), take()
local limits = take_limits()
local codes, brought = take_codes()
local delay, patience, message, cause, hung = take_number(), take_number(), take(), take(), take() == '1'
local sends = sends_at(7, brought, key, id, channel)
check_sends(sends, method)
check_indexes(KEYS[2], recipients)
local task, keys = load(key), sends.by[method]
if hung and task[method .. '.unsure'] then return { 'again' } end

local meta = take_back(keys, id, token)
if not meta then return { 'stale' } end
meta.failures, meta.ready_at = meta.failures + 1, now + delay
write_meta(keys.meta, id, meta)
redis.call('HSET', keys.error, id, message)
redis.call('ZADD', keys.delay, int(now + delay), meta.member)
happened.unsent(id, method, hung and 'unknown' or 'postponed', hung and 'send_unknown' or 'send_failed', cause, now)
if ended(task.status, task.expires, now) then return { 'ok' } end

local first = tonumber(task[method .. '.refused']) or now
redis.call('HSET', key, method .. '.refused', int(first))
if hung then redis.call('HSET', key, method .. '.unsure', task[method .. '.nonce'] or '') end
if patience < 0 or now - first < patience or task[method .. '.fell'] then return { 'ok' } end

-- Whether a code is delivered, or may be in a moment.
local function is_near(name)
  local waits = name ~= method and is_posted(sends, name) and not task[name .. '.refused']
  return waits or (lasts(task, name, now) and delivered(task, name) > 0)
end

for _, name in ipairs(methods_of(task, method)) do
  if is_near(name) then return { 'ok' } end
end
task[method .. '.fell'] = '1'
local following = try_next(sends, task, method, codes, recipients, limits, now)
if not following then return { 'ok' } end
redis.call('HSET', key, method .. '.fell', 1, method .. '.spare', 1, following .. '.spare', 1)
return { 'next', following }
