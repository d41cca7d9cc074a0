-- Count a queue's tasks and deliveries, for the operator.
-- KEYS: pending, then ready, delay, lease, dead, meta, body, error of each callback
-- Returns: ok, pending tasks, then for each callback: ready, delayed, running, dead, and since how
--          long (ms) the oldest waits among the next 100 ready and the next 100 delayed, or -1

local now = now_ms()
local reply = { 'ok', redis.call('ZCOUNT', KEYS[1], int(now), '+inf') }
for base = 1, #KEYS - 1, 7 do
  local keys, oldest = keys_of(base), nil
  for _, name in ipairs({ 'ready', 'delay', 'lease', 'dead' }) do
    reply[#reply + 1] = redis.call('ZCARD', keys[name])
  end
  for _, name in ipairs({ 'ready', 'delay' }) do
    for _, member in ipairs(redis.call('ZRANGE', keys[name], 0, 99)) do
      local meta = read_meta(keys.meta, id_of(member))
      if meta then oldest = math.min(oldest or math.huge, tonumber(meta.enqueued)) end
    end
  end
  reply[#reply + 1] = oldest and int(math.max(now - oldest, 0)) or '-1'
end
return reply
