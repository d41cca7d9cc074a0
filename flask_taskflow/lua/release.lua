-- Give a claimed delivery back that was not started; nothing is counted.
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: id, token
-- Returns: ok | stale

local id, token = take(), take_number()
local keys = keys_of(0)
local meta = take_back(keys, id, token)
if not meta then return { 'stale' } end

redis.call('ZADD', keys.ready, int(-meta.priority), meta.member)
return { 'ok' }
