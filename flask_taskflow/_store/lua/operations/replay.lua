-- Let dead letters run again, as if they had never run.
-- Needs: base, bells, deliveries, runs
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: channel or empty, method of sends or empty, list of ids
-- Returns: ok, how many of them were dead letters

local keys, now, channel, method, last, count = key_sets(1)[1], now_ms(), take(), take(), nil, 0
for _, id in ipairs(take_list()) do
  local meta = read_meta(keys.meta, id)
  if meta and redis.call('ZREM', keys.dead, meta.member) == 1 then
    meta.failures, meta.lost, meta.ready_at = 0, 0, now
    write_meta(keys.meta, id, meta)
    redis.call('ZADD', keys.ready, int(-meta.priority), meta.member)
    ran.replayed(keys, id, now)
    last, count = id, count + 1
  end
end
-- One bell wakes all who look for work.
if last and channel ~= '' then ring(channel, last, method ~= '' and method or nil) end
return { 'ok', count }
