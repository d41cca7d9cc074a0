-- Give back what a process has claimed and never heard of, since the reply was lost; nothing is counted. Of each
-- callback 1,000 leases are looked at, the newest.
-- Needs: base, deliveries, ends, soundness
-- KEYS: ready, delay, lease, dead, meta, body, error of each callback
-- ARGV: the process, list of (index of the callback from 0, id, token) that it knows of
-- Returns: ok

local now, owner, rows, known = now_ms(), take(), take_list(), {}
for i = 1, #rows, 3 do known[table.concat({ unpack(rows, i, i + 2) }, ' ')] = true end
for _, keys in ipairs((sound_ones(key_sets(1)))) do
  for _, member in ipairs(redis.call('ZRANGE', keys.lease, -1000, -1)) do
    local id = id_of(member)
    local meta = read_meta(keys.meta, id)
    local its = meta and holder_of(meta) == owner
    if its and not known[table.concat({ keys.index, id, int(meta.token) }, ' ')] then
      release(keys, { id = id, token = meta.token, delay = 0 }, now)
    end
  end
end
return { 'ok' }
