-- Consume a code: count a wrong one, or end the task and store one delivery per callback.
-- KEYS: task, pending, recipients, recipients:expiry, handlers, seq, decoy,
--       then ready, meta, body of each callback that the caller knows
-- ARGV: id, method, channel, most attempts, failure window ms, retention ms, epoch of the callbacks,
--       list of digests (one per secret key), list of callbacks, list of the caller's own callbacks
-- Returns: unknown | finished, status | expired | wrong, left | code_expired, left |
--          not_allowed, left | locked | resubscribe, list of registered callbacks | ok, now, fields

local now = now_ms()
local id, method, channel, most = take(), take(), take(), take_number()
local failure_window, retention, epoch = take_number(), take_number(), take()
local digests, names, own = take_list(), take_list(), take_list()

-- Count a wrong code; answers how many there were.
local function count_wrong(task, mac, window)
  free(task, {})
  local attempts = redis.call('HINCRBY', task, 'attempts', 1)
  if mac then
    local entry = read_recipient(KEYS[3], mac, now)
    if entry.failures == 0 then entry.failures_end = now + window end
    entry.failures = entry.failures + 1
    write_recipient(KEYS[3], KEYS[4], mac, entry)
  end
  return attempts
end

local got = redis.call('HMGET', KEYS[1], 'status', 'expires', method .. '.digest',
  method .. '.until', method .. '.out', method .. '.field')
local over = ended(got[1], got[2], now)
if over then
  if not got[1] then
    -- An unknown id must not be told by the time it takes: it costs the same writes, soon forgotten.
    redis.call('HGET', KEYS[1], 'mac.')
    count_wrong(KEYS[7], 'decoy', 1000)
    redis.call('PEXPIRE', KEYS[7], 1000)
  end
  return over
end
local field = got[6]
local mac = field and field ~= '' and redis.call('HGET', KEYS[1], 'mac.' .. field)

local armed = got[3] and tonumber(got[5]) > 0
local word = (not field and 'not_allowed') or (not armed and 'wrong')
  or (now >= tonumber(got[4]) and 'code_expired') or 'wrong'
for _, digest in ipairs(digests) do
  if armed and word == 'wrong' and digest == got[3] then word = 'right' end
end

if word ~= 'right' then
  local left = most - count_wrong(KEYS[1], mac, failure_window)
  if left > 0 then return { word, left } end
  finish(KEYS[1], KEYS[2], id, 'LOCKED', retention)
  return { 'locked' }
end

-- Redis stops a script at a key of the wrong type: meet it before the first write.
for i, command in ipairs({ 'ZCARD', 'HLEN', 'ZCARD' }) do redis.call(command, KEYS[i + 1]) end
for i = 1, 3 * #names do redis.call(i % 3 == 1 and 'ZCARD' or 'HLEN', KEYS[7 + i]) end
assert(tonumber(redis.call('GET', KEYS[6]) or 0), 'seq is no number')

if (redis.call('HGET', KEYS[5], '#epoch') or '') ~= epoch then
  if not is_complete(KEYS[5], names, own) then return { 'resubscribe', registered(KEYS[5]) } end
  register(KEYS[5], own, now)
end

finish(KEYS[1], KEYS[2], id, 'SUCCESS', retention)
redis.call('HSET', KEYS[1], 'verified', int(now), 'method', method)
if mac then
  local entry = read_recipient(KEYS[3], mac, now)
  entry.failures, entry.failures_end = 0, 0
  write_recipient(KEYS[3], KEYS[4], mac, entry)
end
local task, priority = redis.call('HGETALL', KEYS[1]), redis.call('HGET', KEYS[1], 'priority')
local body = pack(task)
for i = 1, #names do
  enqueue(KEYS[6], KEYS[3 * i + 5], KEYS[3 * i + 6], KEYS[3 * i + 7], id, priority, body, now)
end
redis.pcall('PUBLISH', channel, '1 ' .. id)
return { 'ok', int(now), task }
