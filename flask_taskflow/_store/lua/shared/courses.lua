-- Shared by what tells of tasks and deliveries: the course of a task, a list of entries `<ms> <event> <more>`, see
-- `courses.py`. It holds no code, no address in clear, and no data. It has at most 100 entries: then `<ms> cut <how
-- many>` stands in its middle. It is kept as long as the task, and for the retention after its last entry. `Steps`
-- brings that, as the last argument.
-- Needs: base, counters

local course_most, course_middle = 100, 50
-- As long as the retention, or longer if it is kept longer anyway.
local kept_on = { ARGV[#ARGV], 'GT' }
-- What names of a queue's keys begin with. Which tasks are claimed, or expired, is known in the step only.
local queue_keys = string.sub(counters_key, 1, -#'counters' - 1)

local function course_of(id) return queue_keys .. 'course:' .. id end

-- Take one entry more out of the middle.
local function cut(course, now)
  local middle = redis.call('LINDEX', course, course_middle)
  local count = string.match(middle, '^%d+ cut (%d+)$')
  if not count then
    count, middle = 1, int(now) .. ' cut 1'
    redis.call('LSET', course, course_middle, middle)
  end
  redis.call('LSET', course, course_middle + 1, int(now) .. ' cut ' .. int(count + 1))
  redis.call('LREM', course, 1, middle)
end

-- Append an entry to a course that there is; `keep` is how long it is kept from now on, as PEXPIRE takes it.
local function enter_all(id, now, keep, ...)
  local course = course_of(id)
  local length = redis.call('RPUSHX', course, table.concat({ int(now), ... }, ' '))
  if keep and length > 0 then redis.call('PEXPIRE', course, unpack(keep)) end
  if length > course_most then cut(course, now) end
end

-- What cannot be entered, as where something else has the key, fails no step.
local function enter(...) pcall(enter_all, ...) end
