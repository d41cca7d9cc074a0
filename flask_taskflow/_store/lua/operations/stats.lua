-- Count a queue's tasks and deliveries, for the operator.
-- Needs: base, counters, deliveries, history
-- KEYS: pending, paused, then ready, delay, lease, dead, meta, body, error of each callback, counters, history
-- ARGV: how long (ms) a moment of the history is, how many of them are wanted, 0 for none
-- What a process held that vanished waits again: it counts as ready.
-- Returns: ok, pending tasks, list of what holds the queue, list of counters and their values, list of moments and
--          their sums, then for each callback: ready, delayed, running, dead, and since how long (ms) the oldest
--          waits that could run now, or -1

local now, length, count = now_ms(), take_number(), take_number()

-- So many priorities are looked at, from the least urgent on, where things wait longest, and so many of each.
local most_priorities, most_of_each = 100, 10

-- When the oldest could run: of each priority the first was stored first. Retries stand before what was stored after
-- them, and wait since they were due.
local function oldest_of(keys)
  local oldest, below = math.huge, '+inf'
  for _ = 1, most_priorities do
    local last = redis.call('ZREVRANGEBYSCORE', keys.ready, below, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not last[1] then break end
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', keys.ready, last[2], last[2], 'LIMIT', 0, most_of_each)) do
      local meta = read_meta(keys.meta, id_of(member))
      oldest = math.min(oldest, meta and meta.ready_at or now)
    end
    below = '(' .. last[2]
  end
  for _, place in ipairs({ 'delay', 'lease' }) do
    local first = redis.call('ZRANGE', keys[place], 0, 0, 'WITHSCORES')
    if first[2] and tonumber(first[2]) <= now then oldest = math.min(oldest, tonumber(first[2])) end
  end
  return oldest < math.huge and int(math.max(now - oldest, 0)) or '-1'
end

local reply = { 'ok', redis.call('ZCOUNT', KEYS[1], int(now), '+inf'), redis.call('HKEYS', KEYS[2]),
  redis.call('HGETALL', counters_key), count > 0 and moments(now, length, count) or {} }
for _, keys in ipairs(key_sets(3)) do
  local over = redis.call('ZCOUNT', keys.lease, '-inf', int(now))
  append(reply, {
    redis.call('ZCARD', keys.ready) + over, redis.call('ZCARD', keys.delay),
    redis.call('ZCARD', keys.lease) - over, redis.call('ZCARD', keys.dead), oldest_of(keys),
  })
end
return reply
