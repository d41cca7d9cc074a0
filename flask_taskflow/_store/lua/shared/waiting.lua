-- Shared by the steps after which something can run, and by those that look for it. `waiting` has the processes that
-- looked, found nothing more and have a place free, by when they said so first (ms), each as
-- `<its channel> <tag of the queue> <names of what it runs>`.
-- Nothing depends on it: whoever is not woken looks by itself, now and then.
-- Needs: base

-- For so long somebody waits who says so only once, ms.
local line_kept = 600000
-- So many of the line are looked at: whoever fills it holds up no step.
local line_most = 100

-- Note that a process waits; nobody if it is empty. Who says so again and again writes seldom.
local function line_up(waiting, who, now)
  local said = who ~= '' and tonumber(redis.pcall('ZSCORE', waiting, who))
  if who == '' or (said and now - said < line_kept / 2) then return end
  redis.pcall('ZADD', waiting, int(now), who)
  redis.pcall('PEXPIRE', waiting, line_kept)
end

-- The names of what a process runs.
local function served_by(who)
  local names = {}
  for name in string.gmatch(string.match(who, ' (%S+)$') or '', '[^,]+') do append(names, { name }) end
  return names
end

-- Wake those that have waited longest, until each of some callbacks has a process that runs it, or `any` of them has;
-- answers whether that is so. Who is gone is passed by.
local function wake(waiting, callbacks, any)
  local left, count = {}, 0
  for _, name in ipairs(callbacks) do left[name], count = true, count + 1 end
  for _, who in ipairs(count > 0 and redis.pcall('ZRANGE', waiting, 0, line_most - 1) or {}) do
    local wanted = {}
    for _, name in ipairs(served_by(who)) do
      if left[name] then append(wanted, { name }) end
    end
    if #wanted > 0 then
      redis.call('ZREM', waiting, who)
      local channel, tag = string.match(who, '^(%S+) (%S+) ')
      local heard = channel and redis.pcall('PUBLISH', channel, tag)
      if type(heard) == 'number' and heard > 0 then
        for _, name in ipairs(wanted) do left[name], count = nil, count - 1 end
        if any or count == 0 then return true end
      end
    end
  end
  return false
end
