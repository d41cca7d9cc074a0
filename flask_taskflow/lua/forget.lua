-- Forget a callback that no process has any more; refused while it has deliveries.
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback, then handlers
-- ARGV: name
-- Returns: none (no such callback) | busy, how many deliveries | ok

local name, handlers = take(), KEYS[8]
if redis.call('HEXISTS', handlers, name) == 0 then return { 'none' } end
local count = redis.call('HLEN', KEYS[5])
if count > 0 then return { 'busy', count } end

redis.call('HDEL', handlers, name, '#epoch')
register(handlers, {}, 0)
return { 'ok' }
