-- Shared by the steps that change a delivery: what happens to it is told here, by one function each. It is counted,
-- goes into the task's course, and for callbacks into the task's `after.<callback>`, which says what became of it:
-- `<state> <attempts> <since ms>`, and when it is due next, if it is tried again.
-- Needs: base, counters, courses

local ran = {}

-- What became of a callback so far, or nil if its task is not there or does not know of it.
local function so_far(task, field)
  local told = redis.pcall('HGET', task, field)
  return type(told) == 'string' and told or nil
end

-- Whether a callback is done with a task that is still there.
local function is_done(id, name)
  return string.find(so_far(queue_keys .. 'task:' .. id, 'after.' .. name) or '', '^done ') ~= nil
end

-- Say what became of a callback, if its task is there and knows of it.
local function became(id, name, state, attempts, now, due)
  local task, field = queue_keys .. 'task:' .. id, 'after.' .. name
  local before = so_far(task, field)
  if not before then return end
  attempts = attempts or tonumber(string.match(before, ' (%d+) ')) or 0
  redis.call('HSET', task, field, table.concat({ state, int(attempts), int(now), due and int(due) }, ' '))
end

local function attempts_of(meta) return meta.failures + meta.lost end

local function count_run(name, what, now) tally(now, { 'run ' .. name .. ' ' .. what, 1 }) end

-- An attempt ended that took so many ms.
local function count_attempt(name, what, now, took)
  local names = histogram('took', name, took)
  append(names, { 'run ' .. name .. ' ' .. what, 1 })
  tally(now, names)
end

function ran.claimed(keys, id, meta, owner, now)
  local name, attempts = name_of(keys.meta), attempts_of(meta) + 1
  -- A retry waited on purpose.
  if meta.token == 1 then tally(now, histogram('wait', name, now - meta.ready_at)) end
  enter(id, now, kept_on, attempts > 1 and 'retried' or 'claimed', name, string.match(owner, '^(.*):%x+$') or owner)
  became(id, name, 'running', attempts, now)
end

-- A claimed delivery was given back that was not started; it waits until it is due, if that is later.
function ran.released(keys, id, meta, due, now)
  local attempts = attempts_of(meta)
  became(id, name_of(keys.meta), attempts > 0 and 'retrying' or 'waiting', attempts, now, due)
end

function ran.done(keys, id, meta, now, took)
  local name = name_of(keys.meta)
  count_attempt(name, 'done', now, took)
  enter(id, now, kept_on, 'done', name)
  became(id, name, 'done', attempts_of(meta) + 1, now)
end

-- An attempt failed, which is counted by now; without a time when the next one is due it was the last one.
function ran.failed(keys, id, meta, cause, due, now, took)
  local name, what = name_of(keys.meta), due and 'failed' or 'dead'
  count_attempt(name, what, now, took)
  enter(id, now, kept_on, what, name, cause)
  became(id, name, due and 'retrying' or 'dead', attempts_of(meta), now, due)
end

-- A process vanished under a delivery, which is counted by now.
function ran.lost(keys, id, meta, due, now)
  local name = name_of(keys.meta)
  count_run(name, 'lost', now)
  enter(id, now, kept_on, 'lost', name)
  if due then return became(id, name, 'retrying', attempts_of(meta), now, due) end
  count_run(name, 'dead', now)
  enter(id, now, kept_on, 'dead', name, 'Lost')
  became(id, name, 'dead', attempts_of(meta), now)
end

-- An operator let dead letters run again.
function ran.replayed(keys, id, now)
  local name = name_of(keys.meta)
  count_run(name, 'replayed', now)
  enter(id, now, kept_on, 'replayed', name)
  became(id, name, 'waiting', 0, now)
end

-- An operator forgot a delivery.
function ran.discarded(keys, id, now)
  local name = name_of(keys.meta)
  count_run(name, 'discarded', now)
  enter(id, now, kept_on, 'discarded', name)
  became(id, name, 'discarded', nil, now)
end

-- An operator gave a delivery to another callback, where it is as dead as before, or waits anew.
function ran.moved(old, new, id, dead, now, due)
  local task, from, to = queue_keys .. 'task:' .. id, name_of(old.meta), name_of(new.meta)
  enter(id, now, kept_on, 'moved', to)
  local state = so_far(task, 'after.' .. from)
  if not state then return end
  redis.call('HDEL', task, 'after.' .. from)
  redis.call('HSET', task, 'after.' .. to, state)
  if not dead then became(id, to, 'waiting', 0, now, due) end
end
