-- Forget a callback that no process has any more, and aliases from and to it; refused while it has deliveries.
-- Needs: base, handlers
-- KEYS: handlers, meta of the callback
-- ARGV: name
-- Returns: none (no such callback) | busy, how many deliveries | ok

local handlers, meta, name = KEYS[1], KEYS[2], take()
local known = redis.call('HMGET', handlers, name, '#alias:' .. name)
if not (known[1] or known[2]) then return { 'none' } end
local count = redis.call('HLEN', meta)
if count > 0 then return { 'busy', count } end

redis.call('HDEL', handlers, name, '#epoch', '#alias:' .. name)
local _, renames = registered(handlers)
for old, new in pairs(renames) do
  if new == name then redis.call('HDEL', handlers, '#alias:' .. old) end
end
register(handlers, {}, {}, 0)
return { 'ok' }
