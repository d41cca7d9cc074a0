-- Shared by verify and consume, which end a task whose code was right: as SUCCESS, or as REJECTED by whom it
-- was sent to and who asked for nothing. Their KEYS are
-- task, pending, the four of recipients.lua, decoy, handlers, seq, unclaimed, waiting,
-- then ready, delay, meta, body of each callback that the caller knows; their ARGV begin with
-- id, status, method, channel, retention ms, epoch of the callbacks, list of callbacks,
-- list of the caller's own callbacks, list of (old name, new name) that these replace, failure window ms.
-- Needs: base, bells, enqueue, finishing, handlers, happenings, loaded, packing, recipients, unclaimed, waiting

local function success_keys()
  return {
    task = KEYS[1], pending = KEYS[2], recipients = counts_at(3),
    decoy = KEYS[7], handlers = KEYS[8], seq = KEYS[9], unclaimed = KEYS[10],
    waiting = KEYS[11],
  }
end

-- Looked at for a right code only: a wrong one must cost no more than it has to.
local function callback_keys()
  local callbacks = {}
  for i = 12, #KEYS, 4 do
    callbacks[#callbacks + 1] = { ready = KEYS[i], delay = KEYS[i + 1], meta = KEYS[i + 2], body = KEYS[i + 3] }
  end
  return callbacks
end

local function take_success()
  return {
    id = take(), status = take(), method = take(), channel = take(), retention = take_number(),
    epoch = take(), names = take_list(), own = take_list(), aliases = take_list(),
    window = take_number(),
  }
end

-- Redis stops a script at a key of a wrong type: meet it before the first write. What was read has the right one.
local function check_keys(keys, callbacks, place, sends, failures)
  redis.call('ZCARD', keys.pending)
  if sends > 0 then redis.call('ZCARD', keys.recipients.sends.expiry) end
  if failures > 0 then redis.call('ZCARD', keys.recipients.budgets.expiry) end
  for _, callback in ipairs(callbacks) do
    redis.call('ZCARD', callback[place])
    redis.call('HLEN', callback.meta)
    redis.call('HLEN', callback.body)
  end
  if #callbacks == 0 then redis.call('ZCARD', keys.unclaimed) else check_number(keys.seq) end
end

-- End a task as verified and store one delivery per callback; answers the reply. `mac` is that of the address,
-- `budget` what its wrong codes count for, `proof` shows that its code was typed.
local function succeed(keys, given, mac, budget, proof, now)
  local id, method, task, callbacks = given.id, given.method, load(keys.task), callback_keys()
  local function ends(status, keep, more)
    append(more, { 'proof', proof })
    return finish(task, keys.task, keys.pending, id, status, keep, now, more)
  end
  if given.status ~= 'SUCCESS' then
    redis.call('ZCARD', keys.pending)
    return { 'ok', int(now), ends(given.status, given.retention, { 'rejected', int(now) }), 0 }
  end

  -- It gives back what its task counted for the recipient; a device's code came with no message.
  local sends = task[method .. '.checks'] and 0 or tonumber(task[method .. '.out'] or 0)
  local failures = tonumber(task[method .. '.wrong'] or 0)
  local due = tonumber(task.run_at) or now
  check_keys(keys, callbacks, due > now and 'delay' or 'ready', sends, failures)
  if (redis.call('HGET', keys.handlers, '#epoch') or '') ~= given.epoch then
    if not same(current(joined(keys.handlers, given.own, given.aliases)), given.names) then
      local names, renames = registered(keys.handlers)
      return { 'resubscribe', names, in_pairs(renames) }
    end
    register(keys.handlers, given.own, given.aliases, now)
  end

  -- Redis refuses a first write alone where memory is full, and never this one.
  free(keys.task, {})
  give_back(keys.recipients, mac, sends, budget, failures, given.window, now)
  local more = after_of(given.names, now)
  append(more, { 'verified', int(now), 'method', method })
  -- One that runs later is kept until then, and as long after it as others.
  local keep = given.retention + math.max(due - now, 0)
  local fields = ends('SUCCESS', keep, more)
  local body = #callbacks > 0 and pack_task(fields)
  for _, callback in ipairs(callbacks) do enqueue(keys.seq, callback, id, task.priority, body, now, due) end
  -- What a request waits for waits for no callback.
  if #callbacks == 0 and not task.gated then keep_unclaimed(keys.unclaimed, id, given.retention, now) end
  local began = math.max(tonumber(task.created) or now, tonumber(task.send_at) or 0)
  happened.verified(id, method, math.min(began, now), keep, now)
  if wake(keys.waiting, given.names) then announce(given.channel, id) else ring(given.channel, id) end
  return { 'ok', int(now), fields, #callbacks }
end
