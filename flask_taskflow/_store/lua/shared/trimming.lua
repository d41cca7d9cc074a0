-- Shared by the steps that forget what is over.
-- Needs: base, courses, happenings, listeners, loaded

-- Let a task be expired for good, whatever becomes of the clock, and tell those who follow.
local function expire(sets, id, now)
  local key = queue_keys .. 'task:' .. id
  local task = load(key)
  if task.status ~= 'PENDING' then return end
  task.status = 'EXPIRED'
  redis.call('HSET', key, 'status', task.status)
  follow(sets, fields_of(task), id, task.priority, now)
end

-- Take expired tasks out of the index and forget recipients, at most 1,000 of each, of tasks that somebody follows
-- 100; true if there may be more.
local function trim(pending, recipients, now)
  local most, tasks = 1000, redis.call('ZRANGEBYSCORE', pending, '-inf', int(now), 'LIMIT', 0, 1000)
  if #tasks > 0 then
    local sets = listeners('EXPIRED')
    if #sets > 0 then most, tasks = 100, { unpack(tasks, 1, math.min(#tasks, 100)) } end
    redis.call('ZREM', pending, unpack(tasks))
    happened.expired(tasks, now)
    for _, id in ipairs(#sets > 0 and tasks or {}) do expire(sets, id, now) end
  end
  local more = #tasks == most
  for _, count in pairs(recipients) do
    local names = redis.call('ZRANGEBYSCORE', count.expiry, '-inf', int(now), 'LIMIT', 0, 1000)
    if #names > 0 then
      redis.call('ZREM', count.expiry, unpack(names))
      redis.call('HDEL', count.counts, unpack(names))
    end
    more = more or #names == 1000
  end
  return more
end
