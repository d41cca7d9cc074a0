-- Shared by verify, reserve and consume, whose KEYS are
-- task, pending, recipients, recipients:expiry, handlers, seq, decoy,
-- then ready, meta, body of each callback that the caller knows.

-- Count a wrong code; answers how many there were.
local function count_wrong(task, mac, window, now)
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

-- The reply for a task that takes no code, or nil.
local function closed(status, expires, now)
  if not status then
    -- An unknown id must not be told by the time it takes: it costs the same writes, soon forgotten.
    redis.call('HGET', KEYS[1], 'mac.')
    count_wrong(KEYS[7], 'decoy', 1000, now)
    redis.call('PEXPIRE', KEYS[7], 1000)
  end
  return ended(status, expires, now)
end

local function mac_of(field)
  return field and field ~= '' and redis.call('HGET', KEYS[1], 'mac.' .. field)
end

-- End a task as verified and store one delivery per callback; answers the reply.
local function succeed(id, method, channel, retention, callbacks, mac, now)
  local names = callbacks.names
  -- Redis stops a script at a key of the wrong type: meet it before the first write.
  for i, command in ipairs({ 'ZCARD', 'HLEN', 'ZCARD' }) do redis.call(command, KEYS[i + 1]) end
  for i = 1, 3 * #names do redis.call(i % 3 == 1 and 'ZCARD' or 'HLEN', KEYS[7 + i]) end
  assert(tonumber(redis.call('GET', KEYS[6]) or 0), 'seq is no number')
  if (redis.call('HGET', KEYS[5], '#epoch') or '') ~= callbacks.epoch then
    if not is_complete(KEYS[5], names, callbacks.own) then
      return { 'resubscribe', registered(KEYS[5]) }
    end
    register(KEYS[5], callbacks.own, now)
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
end
