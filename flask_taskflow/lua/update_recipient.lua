-- Change addresses: the codes sent to old ones die, new ones go out.
-- KEYS: task, recipients, recipients:expiry, then see sending.lua
-- ARGV: id, channel, most updates, limits, list of (field, address, seal, mac),
--       list of (method, nonce, digest) for every method that the caller can send by
-- Returns: unknown | finished, status | expired | send_limit, wait ms |
--          no_strategy, method |
--          ok, now, fields, list of (field, old address or empty), list of methods to send by

local now = now_ms()
local id, channel, most, limits = take(), take(), take_number(), take_limits()
local given, codes = take_list(), take_list()
local task = load(KEYS[1])
local over = ended(task.status, task.expires, now)
if over then return over end

local old, new, addresses = {}, {}, {}
for i = 1, #given, 4 do
  local field, address = given[i], given[i + 1]
  if task['address.' .. field] ~= address then
    old[#old + 1], old[#old + 2] = field, task['address.' .. field] or ''
    new[field] = given[i + 3]
    for k, name in ipairs({ 'address.', 'seal.', 'mac.' }) do
      addresses[#addresses + 1] = name .. field
      addresses[#addresses + 1] = given[i + k]
    end
  end
end
if #old == 0 then return { 'ok', int(now), redis.call('HGETALL', KEYS[1]), {}, {} } end

-- Send by what had a code and whose address changed, else by the first method with an address.
local dead, send, first = {}, {}, nil
for method in string.gmatch(task.methods, '[^,]+') do
  local field = task[method .. '.field']
  if new[field] and task[method .. '.nonce'] then
    send[#send + 1] = method
    for _, name in ipairs({ '.nonce', '.digest', '.until', '.out' }) do dead[#dead + 1] = method .. name end
  end
  if field == '' or new[field] or task['address.' .. field] then first = first or method end
end
if #send == 0 then send = { first } end

local expires = tonumber(task.expires)
local updates, sends = tonumber(task.updates) + 1, tonumber(task.sends) + #send
if updates > most or sends > limits.max_sends then
  return { 'send_limit', int(expires - now) }
end
local brought, macs = {}, {}
for i = 1, #codes, 3 do
  brought[codes[i]] = { nonce = codes[i + 1], digest = codes[i + 2], out = 1, index = (i + 2) / 3 }
end
for i, method in ipairs(send) do
  if not brought[method] then return { 'no_strategy', method } end
  local field = task[method .. '.field']
  macs[i] = new[field] or task['mac.' .. field] or ''
end
local wait = sends_wait(KEYS[2], macs, limits, now)
if wait then return { 'send_limit', int(wait) } end
check_sends(3)

free(KEYS[1], dead)
redis.call('HSET', KEYS[1], 'updates', int(updates), 'sends', int(sends), unpack(addresses))
for _, method in ipairs(send) do
  local code = brought[method]
  code.ends = math.min(now + limits.otp_ttl, expires)
  local count = (tonumber(task[method .. '.sends']) or 0) + 1
  redis.call('HSET', KEYS[1], unpack(sent_fields(method, count, code, limits, now)))
  post(3, code.index, id, method, task.priority, channel, now)
end
count_sends(KEYS[2], KEYS[3], macs, limits, now)
return { 'ok', int(now), redis.call('HGETALL', KEYS[1]), old, send }
