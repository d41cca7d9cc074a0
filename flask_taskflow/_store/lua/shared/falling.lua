-- Shared by the steps after which another method may be tried. `<METHOD>.` in a task's hash has, while a
-- send is not done,
--   posted   the nonce of the code that it is to carry; gone once it is delivered
--   refused  ms when it was first refused for now
--   fell     1 once another method was tried because of that
--   spare    1 if one of several sends is enough: it is needless once another code is delivered
--   unsure   the nonce of a code that an attempt may have delivered without telling
-- Needs: limits, loaded, sending

-- How many sends of the code in force are not known to have failed, but for one that waits or runs.
local function delivered(task, method)
  local out = tonumber(task[method .. '.out']) or 0
  return task[method .. '.posted'] == task[method .. '.nonce'] and out - 1 or out
end

local function lasts(task, method, now) return now < (tonumber(task[method .. '.until']) or 0) end

-- Send by the first method, from one on, that has an address, was not given up, is not on its way and
-- that the limits permit; answers it, or nil.
local function try_next(sends, task, method, codes, recipients, limits, now)
  for _, name in ipairs(methods_of(task, method)) do
    local mac, left = mac_of(task, name), tonumber(task.sends) < limits.max_sends
    local usable = sends.by[name] and mac and left and not task[name .. '.failed']
    if usable and not is_posted(sends, name) and not sends_wait(recipients, { mac }, task['mac.owner'], limits, now) then
      issue(sends, task, name, codes[name], limits, now)
      count_sends(recipients, { mac }, limits, now)
      return name
    end
  end
end
