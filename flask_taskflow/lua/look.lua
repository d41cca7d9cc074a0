-- Look for leases whose process is gone, and take over those that were seen so before.
-- A process that lives is subscribed to a channel named after it; Redis drops that the moment the
-- process's sockets close.
-- KEYS: ready, delay, lease, dead, meta, body, error of each callback
-- ARGV: prefix of the channels, own name, most losses, pause after a repeated loss ms,
--       list of (index of the callback from 0, id, token, deadline) seen before without their process
-- Returns: ok, number of leases, number of deliveries taken over,
--          then (index, id, token, deadline) of each lease without its process

local now = now_ms()
local channels, own, max_lost, pause = take(), take(), take_number(), take_number()
local seen, before, taken, reply = {}, take_list(), 0, {}
for i = 1, #before, 4 do
  seen[table.concat({ before[i], before[i + 1], before[i + 2], before[i + 3] }, ' ')] = true
end

local present = {}
local function is_present(owner)
  if present[owner] == nil then
    present[owner] = redis.call('PUBSUB', 'NUMSUB', channels .. owner)[2] > 0
  end
  return present[owner]
end

local held = 0
for _, i in ipairs((sound_ones(0, #KEYS / 7))) do
  local keys = keys_of(7 * i)
  held = held + redis.call('ZCARD', keys.lease)
  local leases = redis.call('ZRANGE', keys.lease, 0, 99, 'WITHSCORES')
  for k = 1, #leases, 2 do
    local member, deadline, id = leases[k], leases[k + 1], id_of(leases[k])
    local meta = read_meta(keys.meta, id)
    if meta and meta.owner ~= '-' and meta.owner ~= own and not is_present(meta.owner) then
      local row = { int(i), id, int(meta.token), deadline }
      -- One that was lost too often is left to its deadline, and to claim, which tells of it.
      if seen[table.concat(row, ' ')] and meta.lost < max_lost then
        lose(keys, member, id, meta, max_lost, now, pause)
        taken = taken + 1
      else
        for _, item in ipairs(row) do reply[#reply + 1] = item end
      end
    end
  end
end
return { 'ok', held, taken, unpack(reply) }
