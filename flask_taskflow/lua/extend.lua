-- Prolong the leases of what runs; never shortens one.
-- KEYS: lease, meta of each callback
-- ARGV: lease ms, list of (index of the callback from 0, id, token)
-- Returns: ok, then for each delivery 1, or 0 if it is no longer this token's

local now = now_ms()
local lease, running = take_number(), take_list()
local reply = { 'ok' }
for i = 1, #running, 3 do
  local lease_key, meta_key = KEYS[2 * running[i] + 1], KEYS[2 * running[i] + 2]
  local meta = fits(lease_key, 'ZCARD') and fits(meta_key, 'HLEN') and read_meta(meta_key, running[i + 1])
  local held = meta and meta.token == tonumber(running[i + 2])
    and redis.call('ZSCORE', lease_key, meta.member)
  if held then
    free(meta_key, {})
    redis.call('ZADD', lease_key, 'XX', int(math.max(tonumber(held), now + lease)), meta.member)
  end
  reply[#reply + 1] = held and 1 or 0
end
return reply
