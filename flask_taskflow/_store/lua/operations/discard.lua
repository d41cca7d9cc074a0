-- Forget dead letters.
-- Needs: base, deliveries, runs
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: list of ids
-- Returns: ok, how many of them were dead letters

local keys, now, count = key_sets(1)[1], now_ms(), 0
for _, id in ipairs(take_list()) do
  local meta = read_meta(keys.meta, id)
  if meta and redis.call('ZSCORE', keys.dead, meta.member) then
    remove(keys, meta.member)
    ran.discarded(keys, id, now)
    count = count + 1
  end
end
return { 'ok', count }
