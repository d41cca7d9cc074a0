-- Shared by the steps that issue codes. A caller that sends in the background brings, after the step's
-- own KEYS, seq and then ready, delay, lease, dead, meta, body, error of the sends by each method.
-- A send is a delivery whose id is the task's: the task's code in force is to be sent by that method, if it
-- is the one that `<METHOD>.posted` names; `<METHOD>.failed` tells of a send that was given up. A task that
-- failed is pending again with its next message. Before a task's `send_at` no code of it goes out.
-- Needs: base, bells, deliveries, enqueue, expiry, happenings, limits, soundness, tasks

-- New codes by method, and their methods in order, from a list of (method, nonce, digest, issued).
local function take_codes()
  local items, codes, methods = take_list(), {}, {}
  for i = 1, #items, 4 do
    codes[items[i]] = { nonce = items[i + 1], digest = items[i + 2], issued = items[i + 3], out = 1 }
    methods[#methods + 1] = items[i]
  end
  return codes, methods
end

-- Where the sends of a task go: from KEYS[first] on, by method; nowhere if the caller sends inline.
local function sends_at(first, methods, task, id, channel)
  local sends = { task = task, id = id, channel = channel, seq = KEYS[first], by = {} }
  for i, keys in ipairs(key_sets(first + 1)) do sends.by[methods[i]] = keys end
  return sends
end

-- Redis stops a script at a key of a wrong type: meet it before the first write. Where only the sends by one
-- method must be there, others that are spoiled are left out.
local function check_sends(sends, needed)
  for method, keys in pairs(sends.by) do
    if not is_sound(keys) then
      assert(needed and method ~= needed, 'a key of the sends has a wrong type')
      sends.by[method] = nil
    end
  end
  if sends.seq then check_number(sends.seq) end
end

-- Whether a send waits or runs, so that one more message takes its place.
local function is_posted(sends, method)
  local keys = sends.by[method]
  return keys and read_meta(keys.meta, sends.id) ~= nil
end

-- Let a code be sent. A send that is there begins anew, and what runs of it is void.
local function post(sends, method, priority, now)
  local keys, id = sends.by[method], sends.id
  if not keys then return end
  local meta = read_meta(keys.meta, id)
  local nonce, send_at = unpack(redis.call('HMGET', sends.task, method .. '.nonce', 'send_at'))
  local due = tonumber(send_at) or now
  redis.call('HSET', sends.task, method .. '.posted', nonce)
  for _, name in ipairs({ '.failed', '.refused', '.fell', '.spare', '.unsure' }) do
    redis.call('HDEL', sends.task, method .. name)
  end
  if meta then
    for _, place in ipairs({ 'delay', 'lease', 'dead' }) do redis.call('ZREM', keys[place], meta.member) end
    meta.failures, meta.lost, meta.token, meta.ready_at = 0, 0, meta.token + 1, math.max(due, now)
    if due > now then
      redis.call('ZADD', keys.delay, int(due), meta.member)
    else
      redis.call('ZADD', keys.ready, int(-meta.priority), meta.member)
    end
  else
    redis.call('HDEL', keys.meta, id)
    enqueue(sends.seq, keys, id, priority, '', now, due)
    -- No two sends of a task have a token in common, as a report may come again that was done.
    meta = read_meta(keys.meta, id)
    meta.token = tonumber(meta.number, 16) * 1000
  end
  write_meta(keys.meta, id, meta)
  ring(sends.channel, id, method)
end

-- When the life of a task begins whose codes go out.
local function start_of(task) return math.max(task.created, tonumber(task.send_at) or 0) end

-- The word that forbids a task another message, or nil. Near its end a code could not be read in time: that
-- is 20 s before, or half the life of a task that is as short as that.
local function sends_over(task, now)
  local over = closed_for_good(task.status, task.expires, now)
  if over then return over end
  local left, life = task.expires - now, task.expires - start_of(task)
  if left < math.min(20000, life / 2) then return { 'too_late' } end
end

-- Let a task that failed be pending again; it is kept long enough.
local function revive(key, pending, id, task)
  if task.status ~= 'FAILED' then return end
  redis.call('HSET', key, 'status', 'PENDING')
  redis.call('ZADD', pending, task.expires, id)
  keep_pending(pending)
end

-- Let one more message of a loaded task carry a code: store that, and let it be sent.
local function issue(sends, task, method, code, limits, now)
  local count = (tonumber(task[method .. '.sends']) or 0) + 1
  task.sends = tonumber(task.sends) + (task[method .. '.checks'] and 0 or 1)
  local starts = math.max(now, start_of(task))
  code.ends = code.ends or math.min(starts + limits.otp_ttl, tonumber(task.expires))
  redis.call('HSET', sends.task, 'sends', int(task.sends),
    unpack(sent_fields(method, count, code, limits, starts)))
  post(sends, method, task.priority, now)
  happened.posted(sends.id, method, count, now)
end
