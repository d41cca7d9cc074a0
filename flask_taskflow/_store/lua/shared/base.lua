-- Shared by every step: time, numbers, arguments and lists.
-- Times are milliseconds by the server's clock. Replies begin with a word.

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- What somebody wrote from outside may be none (then it is not itself), or none that anything can read.
local function int(number)
  if number ~= number then return '0' end
  return string.format('%d', math.max(-9e15, math.min(number, 9e15)))
end

local cursor = 0
local function take()
  cursor = cursor + 1
  return ARGV[cursor]
end
local function take_number() return tonumber(take()) end
-- A list is its length, then its items.
local function take_list()
  local list = {}
  for i = 1, take_number() do list[i] = take() end
  return list
end

local function append(list, items)
  for _, item in ipairs(items) do list[#list + 1] = item end
end

-- Delete fields of a hash. Also the first write of steps that must work when memory is full: Redis
-- refuses a script's first write only, and never HDEL.
local function free(key, names) redis.call('HDEL', key, '', unpack(names)) end
