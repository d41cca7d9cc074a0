-- End a send without a success: disarm its code unless it may have arrived, and fall back to the next method
-- unless another code is in force.
-- Needs: base, deliveries, falling, finishing, happenings, limits, loaded, recipients, sending, tasks
-- KEYS: task, pending, the four of recipients.lua, then see sending.lua
-- ARGV: id, token (0: lost too often, a dead letter), method,
--       why (refused: for good | unknown: it may have arrived | dropped: no code is wanted), its cause, channel,
--       retention ms, limits, list of (method, nonce, digest, issued) for each method that has keys,
--       list of methods whose codes are right without a message
-- Returns: stale | over (the task needs no code any more) | kept (another code is in force, or may be) |
--          next, method | failed, now, fields; the same again if it is reported again

local key, pending, recipients = KEYS[1], KEYS[2], counts_at(3)
local now, id, token, method, why = now_ms(), take(), take_number(), take(), take()
local cause, channel, retention, limits = take(), take(), take_number(), take_limits()
local codes, brought = take_codes()
local devices, sends = take_list(), sends_at(7, brought, key, id, channel)
check_sends(sends, method)
check_indexes(pending, recipients)
local task, keys = load(key), sends.by[method]
local meta = read_meta(keys.meta, id)

-- Whether the send was the caller's, which nobody has any more.
local function take_send()
  local dead = meta and token == 0 and redis.call('ZSCORE', keys.dead, meta.member)
  local mine = dead or (token > 0 and take_back(keys, id, token))
  if mine then remove(keys, meta.member) end
  return mine
end

local function reply_of(word, following)
  return word == 'failed' and answer(word, key, now) or { word, following }
end

-- The reply to a report that came before.
local function told()
  local at, word, following = string.match(task[method .. '.failed'] or '', '^(%d+) (%l+) (.*)$')
  return token > 0 and at == int(token) and reply_of(word, following) or { 'stale' }
end

local function tell(word, following)
  redis.call('HSET', key, method .. '.failed', table.concat({ int(token), word, following }, ' '))
  if why == 'unknown' then redis.call('HSET', key, method .. '.unsure', task[method .. '.unsure']) end
  return reply_of(word, following)
end

local function disarm()
  if task[method .. '.posted'] == task[method .. '.nonce'] then
    redis.call('HSET', key, method .. '.out', int(math.max(delivered(task, method), 0)))
  end
end

local function is_in_force(name)
  if lasts(task, name, now) and delivered(task, name) > 0 then return true end
  return name ~= method and (tonumber(task[name .. '.out']) or 0) > 0 and is_posted(sends, name)
end

if not take_send() then return told() end
local outcome, event = why == 'refused' and 'failed' or why, why == 'dropped' and why or 'given_up'
happened.unsent(id, method, outcome, event, cause, now)
if ended(task.status, task.expires, now) then return { 'over' } end
if why == 'unknown' then task[method .. '.unsure'] = task[method .. '.nonce'] or '' end
free(key, { method .. '.next', method .. '.posted' })
if task[method .. '.unsure'] ~= task[method .. '.nonce'] then disarm() end
if why == 'dropped' then return { 'kept', '' } end
for _, name in ipairs(methods_of(task, method)) do
  if is_in_force(name) then return tell('kept', '') end
end
task[method .. '.failed'] = 'now'
local following = try_next(sends, task, method, codes, recipients, limits, now)
if following then return tell('next', following) end
for _, name in ipairs(devices) do
  if mac_of(task, name) then return tell('kept', '') end
end
for _, name in ipairs(methods_of(task)) do
  if task[name .. '.unsure'] then return tell('kept', '') end
end
finish(load(key), key, pending, id, 'FAILED', retention, now)
return tell('failed', '')
