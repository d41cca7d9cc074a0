-- Give up a send: disarm its code, and fall back to the next method unless another code is in force.
-- KEYS: task, pending, recipients, recipients:expiry, then see sending.lua
-- ARGV: id, token (0: lost too often, a dead letter), method, channel, retention ms, limits,
--       list of (method, nonce, digest) for each method that has keys,
--       list of methods whose codes are right without a message
-- Returns: stale | over (the task needs no code any more) | kept (another code is in force) |
--          next, method | failed, now, fields; the same again if it is reported again

local now = now_ms()
local id, token, method, channel = take(), take_number(), take(), take()
local retention, limits, codes, devices = take_number(), take_limits(), take_list(), take_list()
local brought = {}
for _, i in ipairs((sound_ones(5, #codes / 3))) do
  brought[codes[3 * i + 1]] = { nonce = codes[3 * i + 2], digest = codes[3 * i + 3], out = 1, index = i + 1 }
end
assert(brought[method] and tonumber(redis.call('GET', KEYS[5]) or 0), 'a key of the sends has a wrong type')
for i, command in ipairs({ 'ZCARD', 'HLEN', 'ZCARD' }) do redis.call(command, KEYS[i + 1]) end

local keys, task = keys_of_sends(4, brought[method].index), load(KEYS[1])
local meta = read_meta(keys.meta, id)
if not meta or (token == 0 and not redis.call('ZSCORE', keys.dead, meta.member))
  or (token > 0 and not take_back(keys, id, token)) then
  local told, word, following = string.match(task[method .. '.failed'] or '', '^(%d+) (%l+) (.*)$')
  if token == 0 or told ~= int(token) then return { 'stale' } end
  if word == 'failed' then return { word, int(now), redis.call('HGETALL', KEYS[1]) } end
  return { word, following }
end
remove(keys, meta.member)
if ended(task.status, task.expires, now) then return { 'over' } end

local function tell(word, following)
  redis.call('HSET', KEYS[1], method .. '.failed', table.concat({ int(token), word, following }, ' '))
  return { word, following }
end

free(KEYS[1], { method .. '.next' })
if task[method .. '.posted'] == task[method .. '.nonce'] then
  task[method .. '.out'] = int(math.max((tonumber(task[method .. '.out']) or 0) - 1, 0))
  redis.call('HSET', KEYS[1], method .. '.out', task[method .. '.out'])
end
task[method .. '.failed'] = 'now'

-- The allowed methods, from the one after this on.
local behind, methods = {}, {}
for name in string.gmatch(task.methods, '[^,]+') do
  local lasts = now < (tonumber(task[name .. '.until']) or 0)
  if (tonumber(task[name .. '.out']) or 0) > 0
    and (lasts or brought[name] and is_posted(4, brought[name].index, id)) then
    return tell('kept', '')
  end
  local list = #methods > 0 and methods or behind
  if name == method then list = methods end
  list[#list + 1] = name
end
for _, name in ipairs(behind) do methods[#methods + 1] = name end

local sends = tonumber(task.sends) + 1
for _, name in ipairs(methods) do
  local mac, code = task[name .. '.field'] == '' and '' or mac_of(task[name .. '.field']), brought[name]
  local usable = code and mac and not task[name .. '.failed'] and sends <= limits.max_sends
  if usable and not sends_wait(KEYS[3], { mac }, limits, now) then
    code.ends = math.min(now + limits.otp_ttl, tonumber(task.expires))
    local count = (tonumber(task[name .. '.sends']) or 0) + 1
    redis.call('HSET', KEYS[1], 'sends', int(sends), unpack(sent_fields(name, count, code, limits, now)))
    count_sends(KEYS[3], KEYS[4], { mac }, limits, now)
    post(4, code.index, id, name, task.priority, channel, now)
    return tell('next', name)
  end
end
for _, name in ipairs(devices) do
  if task[name .. '.field'] == '' or mac_of(task[name .. '.field']) then return tell('kept', '') end
end
finish(KEYS[1], KEYS[2], id, 'FAILED', retention)
tell('failed', '')
return { 'failed', int(now), redis.call('HGETALL', KEYS[1]) }
