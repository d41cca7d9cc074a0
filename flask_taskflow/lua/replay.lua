-- Let a dead letter run again, as if it had never run.
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: id
-- Returns: none (it is no dead letter) | ok

local id, keys = take(), keys_of(0)
local meta = read_meta(keys.meta, id)
if not meta or redis.call('ZREM', keys.dead, meta.member) == 0 then return { 'none' } end

meta.failures, meta.lost = 0, 0
write_meta(keys.meta, id, meta)
redis.call('ZADD', keys.ready, int(-meta.priority), meta.member)
return { 'ok' }
