-- Shared by the steps that end tasks without success: the callbacks that follow such an end. `handlers` maps
-- `+<name>` to `<ms when a process last said it has it> <STATUS>,<STATUS>...`; their deliveries stand under `+<name>`.
-- Needs: base, courses, deliveries, enqueue, packing, soundness

-- The keys of what stands under a callback's name.
local function keys_of(name)
  local keys = {}
  for _, kind in ipairs({ 'ready', 'delay', 'lease', 'dead', 'meta', 'body', 'error' }) do
    keys[kind] = queue_keys .. 'h:' .. name .. ':' .. kind
  end
  return keys
end

-- The keys of those that follow a status. One that something else has spoiled is left out: it holds up no end.
local function listeners(status)
  local sets, all = {}, redis.call('HGETALL', queue_keys .. 'handlers')
  for i = 1, #all, 2 do
    local wanted = string.sub(all[i], 1, 1) == '+' and string.match(all[i + 1], '^%d+ ([%u,]+)$')
    if wanted and string.find(',' .. wanted .. ',', ',' .. status .. ',', 1, true) then
      append(sets, { keys_of(all[i]) })
    end
  end
  return (sound_ones(sets))
end

-- Store a delivery of a task that has ended for each of them.
local function follow(sets, fields, id, priority, now)
  if #sets == 0 then return end
  local body = pack_task(fields)
  for _, keys in ipairs(sets) do
    -- A task that failed may live again, and end once more: of what does not run, the last end counts. What runs is
    -- followed by it.
    local before = read_meta(keys.meta, id)
    if before and redis.call('ZSCORE', keys.lease, before.member) then
      redis.call('HSET', keys.body, id, body)
      mark_anew(keys, id, before)
    else
      if before then remove(keys, before.member) end
      pcall(enqueue, queue_keys .. 'seq', keys, id, priority, body, now)
    end
  end
end
