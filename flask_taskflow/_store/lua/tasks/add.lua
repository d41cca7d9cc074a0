-- Store a pending task and the codes it starts with, unless its key named a task before, or a limit forbids
-- the messages; and end the owner's other tasks of the queue, if that is wanted.
-- Needs: base, courses, expiry, fingerprints, finishing, happenings, limits, listings, loaded, recipients, reminders, sending, trimming
-- KEYS: task, pending, the four of recipients.lua, then what its key is kept under, once for each secret key, the tasks
--       that it replaces, the owner's indexes, and those of the addresses; then see sending.lua
-- ARGV: id, ttl ms, when its codes go out (ms, 0: now), retention ms, priority, channel, limits,
--       list of fields and values to store,
--       list of macs of the messages' addresses or empty, after `~` if a device makes the codes,
--       list of (method, nonce, digest, issued) for each message, how often its key is kept,
--       list of the owner's macs, number of the addresses' indexes, whether it replaces others (1 or 0),
--       list of the ids that it replaces, fingerprints of the caller's secret keys,
--       how long before its end its app is first reminded (ms, 0: never)
-- Returns: ok, created ms, expires ms, then the fields of each replaced task | send_limit, wait ms | bad_time |
--          known, now, id, fields (its key named this task before) | key_missing, fingerprint |
--          others, list of ids (these are to be replaced: give them)

local task, pending, recipients = KEYS[1], KEYS[2], counts_at(3)
local now, id, ttl, send_at, retention = now_ms(), take(), take_number(), take_number(), take_number()
local starts = math.max(now, send_at)
local priority, channel, limits = take(), take(), take_limits()
local stored, macs = take_list(), take_list()
local codes, methods = take_codes()
local named, owner, addresses, replaces = take_number(), take_list(), take_number(), take() == '1'
local replaced, own, first = take_list(), take_list(), 6 + named
local ahead = take_number()
local owned = first + #replaced + #owner
local indexes = { unpack(KEYS, first + #replaced + 1, owned + addresses) }
local sends, expires = sends_at(owned + addresses + 1, methods, task, id, channel), starts + ttl

-- A key names a task as long as that is kept.
for i = 7, 6 + named do
  local other = redis.call('GET', KEYS[i])
  local found = other and redis.call('HGETALL', queue_keys .. 'task:' .. other) or {}
  if #found > 0 then return { 'known', int(now), other, found } end
end

-- What is a minute late is sent at once; no code waits longer than a task may live.
if send_at > 0 and (send_at < now - 60000 or send_at > now + 2592000000) then return { 'bad_time' } end
if count_messages(macs) > limits.max_sends then return { 'send_limit', int(ttl) } end
local wait = sends_wait(recipients, macs, table.concat(owner, ','), limits, now)
if wait then
  happened.limited('recipient', now)
  return { 'send_limit', int(wait) }
end
check_sends(sends)
check_indexes(pending, recipients)
if replaces then
  local others = listed_open({ unpack(indexes, 1, #owner) }, now)
  if table.concat(others, ' ') ~= table.concat(replaced, ' ') then return { 'others', others } end
end
for i = 1, #replaced do
  local lacks = lacks_key(own, redis.call('HMGET', KEYS[first + i], unpack(seals)))
  if lacks then return lacks end
end

for _, method in ipairs(methods) do
  local code = codes[method]
  code.ends = math.min(starts + limits.otp_ttl, expires)
  append(stored, sent_fields(method, 1, code, limits, starts))
end
append(stored, { 'created', int(now), 'expires', int(expires), 'sends', int(count_messages(macs)) })

local reply = { 'ok', int(now), int(expires) }
for i, other in ipairs(replaced) do
  local key = KEYS[first + i]
  append(reply, { finish(load(key), key, pending, other, 'CANCELLED', retention, now) })
end
redis.call('HSET', task, unpack(stored))
redis.call('PEXPIREAT', task, int(expires + retention))
redis.call('ZADD', pending, int(expires), id)
keep_pending(pending)
-- One that runs later is kept until then, and as long after it as others.
local over = math.max(expires, tonumber(redis.call('HGET', task, 'run_at')) or 0)
list_under(indexes, id, over + retention, now)
for i = 7, 6 + named do redis.call('SET', KEYS[i], id, 'PXAT', int(over + retention)) end
count_sends(recipients, macs, limits, now)
happened.added(id, expires + retention, now)
for _, method in ipairs(methods) do
  post(sends, method, priority, now)
  happened.posted(id, method, 1, now)
end
if ahead > 0 then remind(channel, id, priority, expires - ahead, expires, now) end
trim(pending, recipients, now)
return reply
