-- Shared by the steps after which somebody has something to do: what a bell says, see `bells.py`.

-- Tell all processes that a task was verified, or that a code of it waits to be sent by a method, or a reminder.
local function ring(channel, id, method)
  redis.pcall('PUBLISH', channel, method and '2 ' .. id .. ' ' .. method or '1 ' .. id)
end

-- Tell of a verification only those that have receivers of the signal: others were woken to run what follows.
local function announce(channel, id) redis.pcall('PUBLISH', channel .. ':told', '1 ' .. id) end
