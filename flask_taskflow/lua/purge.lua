-- Forget what waits for a callback, ready or delayed; what runs and what is dead stays.
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- Returns: ok, how many were forgotten, at most 1,000

local keys, count = keys_of(0), 0
for _, name in ipairs({ 'ready', 'delay' }) do
  for _, member in ipairs(redis.call('ZRANGE', keys[name], 0, 499)) do
    remove(keys, member)
    count = count + 1
  end
end
return { 'ok', count }
