-- Forget a task, what happened to it, and what is over of its deliveries. What is to run, or runs, stays: its body
-- has the task.
-- Needs: base, courses, deliveries, soundness
-- KEYS: task, its course, its kept answer, pending, unclaimed, then the indexes that list it for its owner and its
--       addresses, then ready, delay, lease, dead, meta, body, error of each callback, and of the sends by each method
-- ARGV: id, number of the indexes, number of the callbacks
-- Returns: ok, 1 if anything was there, list of the indices, from 0, of the callbacks whose delivery stays

local id, indexes, callbacks, found, left = take(), take_number(), take_number(), 0, {}

for _, keys in ipairs((sound_ones(key_sets(6 + indexes)))) do
  local meta = read_meta(keys.meta, id)
  local waits = meta and not redis.call('ZSCORE', keys.dead, meta.member)
  if meta then found = 1 end
  if waits and keys.index < callbacks then
    append(left, { int(keys.index) })
  elseif meta then
    remove(keys, meta.member)
  end
end
-- Where something else has such a key, there is nothing to take out of it.
for i = 4, 5 + indexes do redis.pcall('ZREM', KEYS[i], id) end
local named = redis.pcall('HGET', KEYS[1], 'named')
for name in string.gmatch(type(named) == 'string' and named or '', '[^,]+') do
  redis.call('PEXPIRE', queue_keys .. 'key:' .. name, 0)
end
-- A key that ends at once is deleted, which needs no further permission.
for i = 1, 3 do found = math.max(found, redis.call('PEXPIRE', KEYS[i], 0)) end
return { 'ok', found, left }
