-- Forget what waits for a callback, ready, delayed, or held by a process that vanished; what runs and what
-- is dead stays.
-- Needs: base, deliveries, runs
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- Returns: ok, how many were forgotten, at most 1,500

local keys, now, count = key_sets(1)[1], now_ms(), 0

local function forget(member)
  remove(keys, member)
  ran.discarded(keys, id_of(member), now)
  count = count + 1
end

for _, name in ipairs({ 'ready', 'delay' }) do
  for _, member in ipairs(redis.call('ZRANGE', keys[name], 0, 499)) do
    forget(member)
  end
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', keys.lease, '-inf', int(now), 'LIMIT', 0, 500)) do
  forget(member)
end
return { 'ok', count }
