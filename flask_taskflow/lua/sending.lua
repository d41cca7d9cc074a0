-- Shared by the steps that issue codes. A caller that sends in the background brings, after the step's
-- own KEYS, seq and then ready, delay, lease, dead, meta, body, error of the sends by each method.
-- A send is a delivery whose id is the task's: the task's code in force is to be sent by that method, if it
-- is the one that `<METHOD>.posted` names; `<METHOD>.failed` tells of a send that was given up.

-- Redis stops a script at a key of the wrong type: meet it before the first write.
local function check_sends(base)
  if #KEYS == base then return end
  local _, broken = sound_ones(base + 1, (#KEYS - base - 1) / 7)
  assert(broken == '', 'a key of the sends has a wrong type')
  assert(tonumber(redis.call('GET', KEYS[base + 1]) or 0), 'seq is no number')
end

local function keys_of_sends(base, index) return keys_of(base + 1 + 7 * (index - 1)) end

-- Whether a send waits or runs, so that one more message takes its place.
local function is_posted(base, index, id)
  return #KEYS > base and read_meta(keys_of_sends(base, index).meta, id) ~= nil
end

-- Let a code be sent. A send that is there begins anew, and what runs of it is void.
local function post(base, index, id, method, priority, channel, now)
  if #KEYS == base then return end
  local keys = keys_of_sends(base, index)
  local meta = read_meta(keys.meta, id)
  redis.call('HSET', KEYS[1], method .. '.posted', redis.call('HGET', KEYS[1], method .. '.nonce'))
  redis.call('HDEL', KEYS[1], method .. '.failed')
  if meta then
    for _, name in ipairs({ 'delay', 'lease', 'dead' }) do redis.call('ZREM', keys[name], meta.member) end
    meta.failures, meta.lost, meta.token = 0, 0, meta.token + 1
    write_meta(keys.meta, id, meta)
    redis.call('ZADD', keys.ready, int(-meta.priority), meta.member)
  else
    redis.call('HDEL', keys.meta, id)
    enqueue(KEYS[base + 1], keys.ready, keys.meta, keys.body, id, priority, '', now)
    -- No two sends of a task have a token in common, as a report may come again that was done.
    meta = read_meta(keys.meta, id)
    meta.token = tonumber(meta.number, 16) * 1000
    write_meta(keys.meta, id, meta)
  end
  redis.pcall('PUBLISH', channel, '2 ' .. id .. ' ' .. method)
end
