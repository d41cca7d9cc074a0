-- Give up a send: disarm its code, and fall back to the next method unless another code is in force.
-- KEYS: task, pending, recipients, recipients:expiry, then see sending.lua
-- ARGV: id, token (0: lost too often, a dead letter), method, channel, retention ms, limits,
--       list of (method, nonce, digest) for each method that has keys
-- Returns: stale | over (the task needs no code any more) | kept (another code is in force) |
--          next, method | failed, now, fields

local now = now_ms()
local id, token, method, channel = take(), take_number(), take(), take()
local retention, limits, codes = take_number(), take_limits(), take_list()
local brought = {}
for i = 1, #codes, 3 do
  brought[codes[i]] = { nonce = codes[i + 1], digest = codes[i + 2], out = 1, index = (i + 2) / 3 }
end

local keys = keys_of_sends(4, brought[method].index)
local meta = read_meta(keys.meta, id)
if not meta or (token == 0 and not redis.call('ZSCORE', keys.dead, meta.member))
  or (token > 0 and not take_back(keys, id, token)) then
  return { 'stale' }
end
remove(keys, meta.member)
local task = load(KEYS[1])
if ended(task.status, task.expires, now) then return { 'over' } end

free(KEYS[1], { method .. '.next' })
task[method .. '.out'] = int(math.max((tonumber(task[method .. '.out']) or 0) - 1, 0))
task[method .. '.failed'] = '1'
redis.call('HSET', KEYS[1], method .. '.out', task[method .. '.out'], method .. '.failed', '1')

-- The allowed methods, from the one after this on.
local behind, methods = {}, {}
for name in string.gmatch(task.methods, '[^,]+') do
  local armed = (tonumber(task[name .. '.out']) or 0) > 0 and now < tonumber(task[name .. '.until'])
  if armed then return { 'kept' } end
  local list = #methods > 0 and methods or behind
  if name == method then list = methods end
  list[#list + 1] = name
end
for _, name in ipairs(behind) do methods[#methods + 1] = name end

local sends = tonumber(task.sends) + 1
for _, name in ipairs(methods) do
  local field, code = task[name .. '.field'], brought[name]
  local mac = field == '' and '' or task['mac.' .. field]
  local usable = code and mac and not task[name .. '.failed'] and sends <= limits.max_sends
  if usable and not sends_wait(KEYS[3], { mac }, limits, now) then
    code.ends = math.min(now + limits.otp_ttl, tonumber(task.expires))
    local count = (tonumber(task[name .. '.sends']) or 0) + 1
    redis.call('HSET', KEYS[1], 'sends', int(sends), unpack(sent_fields(name, count, code, limits, now)))
    count_sends(KEYS[3], KEYS[4], { mac }, limits, now)
    post(4, code.index, id, name, task.priority, channel, now)
    return { 'next', name }
  end
end
finish(KEYS[1], KEYS[2], id, 'FAILED', retention)
return { 'failed', int(now), redis.call('HGETALL', KEYS[1]) }
