-- Change addresses: the codes sent to old ones die, new ones go out.
-- Needs: base, courses, fingerprints, happenings, limits, listings, loaded, recipients, sending, tasks
-- KEYS: task, pending, the four of recipients.lua, the indexes of the old addresses, those of the new ones, then see
--       sending.lua
-- ARGV: id, channel, most updates, limits, fingerprints of the caller's secret keys,
--       list of (field, address) that the caller read before, list of (field, address, mac, masked),
--       seal over all addresses afterwards, number of the old addresses' indexes, that of the new ones',
--       list of (method, nonce, digest, issued) for every method that the caller can send by
-- Returns: unknown | finished, status | expired | too_late | key_missing, fingerprint | send_limit, wait ms |
--          no_strategy, method | changed (an address, since it was read) |
--          ok, now, fields, list of (field, old address or empty), list of methods to send by

local key, pending, recipients = KEYS[1], KEYS[2], counts_at(3)
local now, id, channel, most, limits = now_ms(), take(), take(), take_number(), take_limits()
local own, read, given, seal = take_list(), take_list(), take_list(), take()
local left, entered = take_number(), take_number()
local codes, brought = take_codes()
local sends, task = sends_at(7 + left + entered, brought, key, id, channel), load(key)
local refused = sends_over(task, now) or lacks_key(own, seals_of(task))
if refused then return refused end

-- The seal is over all addresses: none may have changed since the caller read them.
local known = {}
for i = 1, #read, 2 do known['address.' .. read[i]] = read[i + 1] end
for name, value in pairs(task) do
  if string.sub(name, 1, 8) == 'address.' and known[name] ~= value then return { 'changed' } end
end

-- What changes: old addresses, the macs of new ones by field, the fields to store, and what is told of it.
local old, new, stored, told = {}, {}, {}, {}
for i = 1, #given, 4 do
  local field, address, mac, masked = unpack(given, i, i + 3)
  local before = task['address.' .. field]
  if before ~= address then
    new[field] = mac
    append(old, { field, before or '' })
    append(told, { masked })
    append(stored, { 'address.' .. field, address, 'mac.' .. field, mac })
  end
end

-- Send by what had a code and whose address changed, else by the first method with an address; for a task
-- that failed, with another one.
local function methods_to_send()
  local changed, first, fresh = {}, nil, nil
  for _, method in ipairs(methods_of(task)) do
    local field = task[method .. '.field']
    if new[field] and task[method .. '.sends'] then append(changed, { method }) end
    if new[field] then fresh = fresh or method end
    if field == '' or new[field] or task['address.' .. field] then first = first or method end
  end
  return #changed > 0 and changed or { task.status == 'FAILED' and fresh or first }
end

local function done(methods)
  local reply = answer('ok', key, now)
  append(reply, { old, methods })
  return reply
end

if #old == 0 then return ended(task.status, task.expires, now) or done({}) end
local methods, macs, updates = methods_to_send(), {}, tonumber(task.updates) + 1
for field, mac in pairs(new) do task['mac.' .. field] = mac end
for i, method in ipairs(methods) do macs[i] = mac_of(task, method) or '' end
if updates > most or tonumber(task.sends) + count_messages(macs) > limits.max_sends then
  happened.limited('task', now)
  return { 'send_limit', int(tonumber(task.expires) - now) }
end
for _, method in ipairs(methods) do
  if not codes[method] then return { 'no_strategy', method } end
end
local wait = sends_wait(recipients, macs, task['mac.owner'], limits, now)
if wait then
  happened.limited('recipient', now)
  return { 'send_limit', int(wait) }
end
check_sends(sends)
check_indexes(pending, recipients)

local dead = {}
for _, method in ipairs(methods) do
  append(dead, { method .. '.nonce', method .. '.digest', method .. '.issued', method .. '.until', method .. '.out' })
end
free(key, dead)
redis.call('HSET', key, 'updates', int(updates), 'seal.recipient', seal, unpack(stored))
revive(key, pending, id, task)
for i = 7, 6 + left do redis.pcall('ZREM', KEYS[i], id) end
local over = math.max(task.expires, tonumber(task.run_at) or 0)
list_under({ unpack(KEYS, 7 + left, 6 + left + entered) }, id, over + kept_on[1], now)
for _, masked in ipairs(told) do happened.changed(id, masked, now) end
for _, method in ipairs(methods) do issue(sends, task, method, codes[method], limits, now) end
count_sends(recipients, macs, limits, now)
return done(methods)
