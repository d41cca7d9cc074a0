-- Tell where one delivery stands.
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: id
-- Returns: none | ready | delay | lease | dead, since or until ms, failures, lost, owner, error

local id, keys = take(), keys_of(0)
local meta = read_meta(keys.meta, id)
for _, name in ipairs({ 'ready', 'delay', 'lease', 'dead' }) do
  local score = meta and redis.call('ZSCORE', keys[name], meta.member)
  if score then
    if name == 'ready' then score = meta.enqueued end
    return { name, score, meta.failures, meta.lost, meta.owner, redis.call('HGET', keys.error, id) or '' }
  end
end
return { 'none' }
