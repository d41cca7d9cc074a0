-- Prolong the leases of what runs; never shortens one.
-- Needs: base, deliveries, soundness
-- KEYS: lease, meta of each callback
-- ARGV: lease ms, list of (index of the callback from 0, id, token)
-- Returns: ok, then for each delivery 1, or 0 if it is no longer this token's

local callbacks = {}
for i = 1, #KEYS, 2 do append(callbacks, { { lease = KEYS[i], meta = KEYS[i + 1] } }) end
local now, lease, running = now_ms(), take_number(), take_list()
local reply = { 'ok' }
for i = 1, #running, 3 do
  local keys, id, token = callbacks[running[i] + 1], running[i + 1], tonumber(running[i + 2])
  local meta = fits(keys.lease, 'ZCARD') and fits(keys.meta, 'HLEN') and read_meta(keys.meta, id)
  local held = meta and meta.token == token and redis.call('ZSCORE', keys.lease, meta.member)
  if held then
    free(keys.meta, {})
    redis.call('ZADD', keys.lease, 'XX', int(math.max(tonumber(held), now + lease)), meta.member)
  end
  append(reply, { held and 1 or 0 })
end
return reply
