-- Forget a dead letter.
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: id
-- Returns: none (it is no dead letter) | ok

local id, keys = take(), keys_of(0)
local meta = read_meta(keys.meta, id)
if not meta or not redis.call('ZSCORE', keys.dead, meta.member) then return { 'none' } end

remove(keys, meta.member)
return { 'ok' }
