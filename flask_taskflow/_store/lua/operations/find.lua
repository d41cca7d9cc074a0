-- Tell where one delivery stands.
-- Needs: base, deliveries
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: id
-- Returns: none | ready | delay | lease | dead, since or until ms, failures, lost, owner, error

local keys, id = key_sets(1)[1], take()
local meta = read_meta(keys.meta, id)
for _, place in ipairs(places) do
  local score = meta and redis.call('ZSCORE', keys[place], meta.member)
  if score then
    if place == 'ready' then score = int(meta.ready_at) end
    local message = redis.call('HGET', keys.error, id) or ''
    return { place, score, meta.failures, meta.lost, holder_of(meta), message }
  end
end
return { 'none' }
