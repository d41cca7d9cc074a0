-- Shared by the steps that store deliveries.
-- Needs: base

-- Store one delivery under the keys of its callback or send; a second time changes nothing. It may be due later, and waits from then on.
local function enqueue(seq, keys, id, priority, body, now, due)
  if redis.call('HEXISTS', keys.meta, id) == 1 then return end
  local number = string.format('%016x', redis.call('INCR', seq))
  priority = tonumber(priority) or 0
  redis.call('HSET', keys.meta, id, '1 ' .. number .. ' ' .. int(priority) .. ' 0 0 0 ' .. int(math.max(due or now, now)) .. ' -')
  redis.call('HSET', keys.body, id, body)
  if due and due > now then
    redis.call('ZADD', keys.delay, int(due), number .. ':' .. id)
  else
    redis.call('ZADD', keys.ready, int(-priority), number .. ':' .. id)
  end
end

-- The fields of a task by which it knows what becomes of its callbacks.
local function after_of(names, now)
  local fields = {}
  for _, name in ipairs(names) do append(fields, { 'after.' .. name, 'waiting 0 ' .. int(now) }) end
  return fields
end

-- Redis stops a script at a key of a wrong type: meet it before the first write.
local function check_number(seq)
  local number = redis.call('GET', seq) or '0'
  assert(#number < 16 and string.match(number, '^%d+$'), 'seq is no number')
end
