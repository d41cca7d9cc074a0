-- Shared by the steps that report how attempts ended. Each end is in this one place: a function of the keys of
-- the callback and of what is reported, which answers a word. That is: id, the newest token, delay (ms), error,
-- cause (its class, and where the app stood), how many ms it took.
-- Needs: base, deliveries, runs

local function take_end()
  return {
    id = take(), token = take_number(), delay = take_number(), error = take(), cause = take(),
    took = take_number(),
  }
end

-- Done. Holds also after the lease or the timeout passed, while nobody has claimed the delivery again.
local function ack(keys, told, now)
  local meta = read_meta(keys.meta, told.id)
  if not meta then return 'gone' end
  if meta.token ~= told.token then return 'stale' end
  free(keys.meta, {})
  ran.done(keys, told.id, meta, now, told.took)
  if not begin_anew(keys, told.id, meta, now) then remove(keys, meta.member) end
  return 'ok'
end

-- Whether an attempt ended so that its delivery stands in a place now.
local function stands_in(keys, place, told)
  local meta = read_meta(keys.meta, told.id)
  return meta and meta.token == told.token and redis.call('ZSCORE', keys[place], meta.member)
end

local function fail_into(keys, place, due, told, now)
  local meta = take_back(keys, told.id, told.token)
  -- The report that ended it may be this one, whose answer was lost.
  if not meta then return stands_in(keys, place, told) and 'gone' or 'stale' end
  meta.failures, meta.ready_at = meta.failures + 1, due or now
  write_meta(keys.meta, told.id, meta)
  redis.call('HSET', keys.error, told.id, told.error)
  redis.call('ZADD', keys[place], int(due or now), meta.member)
  ran.failed(keys, told.id, meta, told.cause, due, now, told.took)
  begin_anew(keys, told.id, meta, now)
  return 'ok'
end

-- Failed: due again after a delay.
local function fail(keys, told, now) return fail_into(keys, 'delay', now + told.delay, told, now) end

-- Failed for the last time: a dead letter.
local function bury(keys, told, now) return fail_into(keys, 'dead', nil, told, now) end

-- Not started: given back, at once or after a delay; nothing is counted.
local function release(keys, told, now)
  local meta = take_back(keys, told.id, told.token)
  if not meta then return 'stale' end
  local due = told.delay > 0 and now + told.delay or nil
  if due then
    meta.ready_at = due
    write_meta(keys.meta, told.id, meta)
    redis.call('ZADD', keys.delay, int(due), meta.member)
  else
    redis.call('ZADD', keys.ready, int(-meta.priority), meta.member)
  end
  ran.released(keys, told.id, meta, due, now)
  return 'ok'
end
