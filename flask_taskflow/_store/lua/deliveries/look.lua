-- Look for leases whose process is gone, and take over those that were seen so before.
-- A process that lives is subscribed to a channel named after it; Redis drops that the moment the
-- process's sockets close.
-- Needs: base, deliveries, outcomes, soundness
-- KEYS: ready, delay, lease, dead, meta, body, error of each callback
-- ARGV: prefix of the channels, own name, most losses, pause after a repeated loss ms,
--       list of (index of the callback from 0, id, token, deadline) seen before without their process
-- Returns: ok, number of leases, number of deliveries taken over,
--          then (index, id, token, deadline) of each lease without its process

local now, channels, own = now_ms(), take(), take()
local limits, before = { max_lost = take_number(), pause = take_number() }, take_list()
local seen, present, held, taken, suspects = {}, {}, 0, 0, {}
for i = 1, #before, 4 do seen[table.concat({ unpack(before, i, i + 3) }, ' ')] = true end

local function is_present(owner)
  if present[owner] == nil then
    present[owner] = redis.call('PUBSUB', 'NUMSUB', channels .. owner)[2] > 0
  end
  return present[owner]
end

for _, keys in ipairs((sound_ones(key_sets(1)))) do
  held = held + redis.call('ZCARD', keys.lease)
  local leases = redis.call('ZRANGE', keys.lease, 0, 99, 'WITHSCORES')
  for k = 1, #leases, 2 do
    local member, deadline, id = leases[k], leases[k + 1], id_of(leases[k])
    local meta = read_meta(keys.meta, id)
    local owner = meta and holder_of(meta)
    if meta and owner ~= '-' and owner ~= own and not is_present(owner) then
      local row = { int(keys.index), id, int(meta.token), deadline }
      -- One that was lost too often is left to its deadline, and to claim, which tells of it.
      if seen[table.concat(row, ' ')] and meta.lost < limits.max_lost then
        lose(keys, member, meta, limits, now)
        taken = taken + 1
      elseif #suspects < 1600 then
        append(suspects, row)
      end
    end
  end
end
return { 'ok', held, taken, unpack(suspects) }
