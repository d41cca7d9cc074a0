-- Shared by the engine's steps: attempts that failed or were lost, and what is due next.

-- Count a failed attempt and put the delivery into `place`; answers the reply.
local function fail_into(place, score)
  local id, token, message = take(), take_number(), take()
  local keys = keys_of(0)
  local meta = take_back(keys, id, token)
  if not meta then return { 'stale' } end
  meta.failures = meta.failures + 1
  write_meta(keys.meta, id, meta)
  redis.call('HSET', keys.error, id, message)
  redis.call('ZADD', keys[place], int(score), meta.member)
  return { 'ok' }
end

-- Count a lost process: at once again, then after a pause, then dead (answers true).
local function lose(keys, member, id, meta, max_lost, now, pause)
  redis.call('ZREM', keys.lease, member)
  meta.lost = meta.lost + 1
  write_meta(keys.meta, id, meta)
  if meta.lost > max_lost then
    redis.call('HSET', keys.error, id, 'lost with its process ' .. meta.lost .. ' times')
    redis.call('ZADD', keys.dead, int(now), member)
    return true
  elseif meta.lost == 1 then
    redis.call('ZADD', keys.ready, int(-meta.priority), member)
  else
    redis.call('ZADD', keys.delay, int(now + pause), member)
  end
end

-- Milliseconds until something is due in the delays and leases of the callbacks, or -1.
local function next_due(indices, now)
  local soonest
  for _, i in ipairs(indices) do
    for _, key in ipairs({ KEYS[7 * i + 2], KEYS[7 * i + 3] }) do
      local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
      if first[2] then soonest = math.min(soonest or math.huge, tonumber(first[2])) end
    end
  end
  return soonest and int(math.max(soonest - now, 0)) or '-1'
end
