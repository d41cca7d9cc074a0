-- Shared by the engine's steps: attempts that were lost with their process, and what is due next.
-- Needs: base, deliveries, runs

-- Count a lost process: at once again, then after a pause, then dead (answers true). What was claimed ahead may
-- not have been started: nothing is counted then, and the next time it is not claimed ahead.
local function lose(keys, member, meta, limits, now)
  local id = id_of(member)
  redis.call('ZREM', keys.lease, member)
  if begin_anew(keys, id, meta, now) then return false end
  meta.ready_at = now
  if spare(meta) then
    write_meta(keys.meta, id, meta)
    redis.call('ZADD', keys.ready, int(-meta.priority), member)
    ran.released(keys, id, meta, nil, now)
    return false
  end
  meta.lost = meta.lost + 1
  local due = meta.lost == 1 and now or now + limits.pause
  meta.ready_at = due
  write_meta(keys.meta, id, meta)
  if meta.lost > limits.max_lost then
    redis.call('HSET', keys.error, id, 'lost with its process ' .. meta.lost .. ' times')
    redis.call('ZADD', keys.dead, int(now), member)
    ran.lost(keys, id, meta, nil, now)
    return true
  end
  if due == now then
    redis.call('ZADD', keys.ready, int(-meta.priority), member)
  else
    redis.call('ZADD', keys.delay, int(due), member)
  end
  ran.lost(keys, id, meta, due, now)
end

-- Milliseconds until something is due in the delays and leases of the callbacks, or -1.
local function next_due(sets, now)
  local soonest
  for _, keys in ipairs(sets) do
    for _, key in ipairs({ keys.delay, keys.lease }) do
      local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
      if first[2] then soonest = math.min(soonest or math.huge, tonumber(first[2])) end
    end
  end
  return soonest and int(math.max(soonest - now, 0)) or '-1'
end
