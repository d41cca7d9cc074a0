-- End a pending task, one that failed and may live again, or a verified one whose callbacks wait for its time, unless one of them has begun.
-- Needs: base, deliveries, fingerprints, finishing, handlers, listeners, loaded, soundness, tasks
-- KEYS: task, pending, handlers, unclaimed
-- ARGV: id, retention ms, fingerprints of the caller's secret keys
-- Returns: unknown | finished, status | expired | key_missing, fingerprint | ok, now, fields

local key, pending, handlers, unclaimed = unpack(KEYS)
local now, id, retention, own = now_ms(), take(), take_number(), take_list()

-- Forget the deliveries of a verified task; false if one has begun, or there are none.
local function recall()
  local waiting, sets = {}, {}
  for _, name in ipairs(all_names(handlers)) do append(sets, { keys_of(name) }) end
  for _, keys in ipairs((sound_ones(sets))) do
    local meta = read_meta(keys.meta, id)
    if meta and meta.token > 0 then return false end
    if meta then append(waiting, { { keys = keys, member = meta.member } }) end
  end
  for _, item in ipairs(waiting) do remove(item.keys, item.member) end
  return #waiting > 0 or redis.call('ZREM', unclaimed, id) == 1
end

local task = load(key)
local over = closed_for_good(task.status, task.expires, now)
local runs_later = task.status == 'SUCCESS' and task.run_at
if over and not runs_later then return over end
local lacks = lacks_key(own, seals_of(task))
if lacks then return lacks end
if runs_later and not recall() then return over end
return { 'ok', int(now), finish(task, key, pending, id, 'CANCELLED', retention, now) }
