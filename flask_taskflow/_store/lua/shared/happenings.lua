-- Shared by the steps that change a task: what happens to it and to its codes is told here, by one function each. It
-- is counted, and goes into the task's course.
-- Needs: base, counters, courses

local happened = {}

function happened.added(id, ends, now)
  tally(now, { 'tasks added', 1 })
  pcall(function()
    redis.call('RPUSH', course_of(id), int(now) .. ' added')
    redis.call('PEXPIREAT', course_of(id), int(ends))
  end)
end

-- A code is to be sent, the method's first one or another.
function happened.posted(id, method, count, now)
  tally(now, { 'codes ' .. method .. ' posted', 1 })
  enter(id, now, nil, count > 1 and 'resent' or 'posted', method)
end

function happened.sent(id, method, now)
  tally(now, { 'codes ' .. method .. ' sent', 1 })
  enter(id, now, nil, 'sent', method)
end

-- A code was not sent: `what` counts it, `event` tells it.
function happened.unsent(id, method, what, event, cause, now)
  tally(now, { 'codes ' .. method .. ' ' .. what, 1 })
  enter(id, now, nil, event, method, cause)
end

-- A limit forbade something.
function happened.limited(limit, now) tally(now, { 'limits ' .. limit, 1 }) end

-- A code came that only a device can judge.
function happened.tried(id, method, now) enter(id, now, nil, 'tried', method) end

function happened.refused(id, method, cause, now)
  local known = cause == 'method_not_allowed' and '-' or method
  tally(now, { 'rejected ' .. known .. ' ' .. cause, 1 })
  enter(id, now, nil, 'refused', method, cause)
end

-- No code for a recipient is compared for now.
function happened.blocked(id, method, now) enter(id, now, nil, 'refused', method, 'recipient_blocked') end

function happened.changed(id, masked, now) enter(id, now, nil, 'recipient_changed', masked) end

-- A task ended without success; it is kept for so many ms.
function happened.finished(id, status, keep, now)
  local event = string.lower(status)
  tally(now, { 'tasks ' .. event, 1 })
  enter(id, now, { int(keep) }, event == 'failed' and 'task_failed' or event)
end

function happened.verified(id, method, created, keep, now)
  local names = histogram('verify', method, now - created)
  append(names, { 'tasks verified', 1 })
  tally(now, names)
  enter(id, now, { int(keep) }, 'verified', method)
end

function happened.expired(ids, now)
  tally(now, { 'tasks expired', #ids })
  for _, id in ipairs(ids) do enter(id, now, kept_on, 'expired') end
end
