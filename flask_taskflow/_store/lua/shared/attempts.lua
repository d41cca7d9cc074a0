-- Shared by the steps that count attempts at a code. `keys` are those of the step, by name: task,
-- recipients, decoy.
-- Needs: base, counters, courses, fingerprints, recipients, tasks

local function decoys(keys, own, now)
  return read_names(keys.recipients.budgets, 'decoy.' .. table.concat(own, ',decoy.'), now)
end

-- Count a wrong code, for the task at a key and for those whose budget it is; answers how many the task had. Where
-- no owner is counted, a decoy is: time must not tell a task of an owner from another.
local function count_wrong(keys, own, key, method, budget, owner, window, now)
  free(key, {})
  local attempts = redis.call('HINCRBY', key, 'attempts', 1)
  if #budget > 0 then redis.call('HINCRBY', key, method .. '.wrong', 1) end
  count_failure(keys.recipients, budget, window, now)
  if not owner then count_failure(keys.recipients, decoys(keys, own, now), 1000, now) end
  return attempts
end

-- Take as long as for a wrong code where none is compared: the same writes, soon forgotten. `cause` is counted
-- for a task that is there: made-up ids would leave counters behind.
local function pretend(keys, own, now, cause)
  count_wrong(keys, own, keys.decoy, 'DECOY', decoys(keys, own, now), nil, 1000, now)
  enter('decoy', now, nil, 'refused', 'DECOY', 'wrong_code')
  if cause then
    tally(now, { cause, 1 })
  else
    redis.call('HMGET', keys.decoy, '@minute', 'rejected')
    redis.call('HSET', keys.decoy, 'rejected', 1)
  end
  redis.call('PEXPIRE', keys.decoy, 1000)
end

-- Read as much as makes up for a task that is not there: to read one takes longer (measured, as S19 is).
local function linger(keys, times)
  for _ = 1, times do
    redis.call('HMGET', keys.decoy, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l')
  end
end

-- The reply to who is not the task's holder, or nil. It takes as long as for a wrong code.
local function strange(keys, own, holder, held, seal, now)
  local refused = not_held(own, holder, held, seal)
  if refused then pretend(keys, own, now) end
  return refused
end

-- The reply for a task that takes no code, or nil.
local function closed(keys, own, status, expires, now)
  local over = ended(status, expires, now)
  if over then
    -- Neither an unknown id nor a task that is over must be told by the time it takes.
    counted_for(keys.task, nil)
    linger(keys, status and 3 or 10)
    local late = over[1] == 'expired' or status == 'EXPIRED'
    pretend(keys, own, now, status and 'rejected - task_' .. (late and 'expired' or 'not_pending'))
  end
  return over
end
