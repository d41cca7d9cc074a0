-- Shared by the steps that end or register: the callbacks of a queue, and new deliveries.
-- `handlers` maps a callback's name to when a process last said it has it; `#epoch` is the digest of
-- the sorted names.

local function registered(handlers)
  local names = {}
  for _, name in ipairs(redis.call('HKEYS', handlers)) do
    if name ~= '#epoch' then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

-- Whether `names` are just the registered callbacks and the caller's own.
local function is_complete(handlers, names, own)
  local known, right = {}, {}
  for _, name in ipairs(names) do known[name] = true end
  for _, name in ipairs(own) do right[name] = true end
  for _, name in ipairs(registered(handlers)) do
    if not known[name] then return false end
    right[name] = true
  end
  for _, name in ipairs(names) do
    if not right[name] then return false end
  end
  return true
end

local function register(handlers, names, now)
  free(handlers, {})
  for _, name in ipairs(names) do redis.call('HSET', handlers, name, int(now)) end
  local all = registered(handlers)
  if #all > 0 then
    redis.call('HSET', handlers, '#epoch', redis.sha1hex(table.concat(all, ',')))
  end
end

-- A task's strings in one: `<length>:<field><length>:<value>...`, without what belongs to its codes.
local function pack(task)
  local parts = {}
  for i = 1, #task, 2 do
    if not string.find(task[i], '^%u') then
      parts[#parts + 1] = #task[i] .. ':' .. task[i] .. #task[i + 1] .. ':' .. task[i + 1]
    end
  end
  return table.concat(parts)
end

-- Store one callback's delivery of a task; a second time changes nothing.
local function enqueue(seq, ready, meta, body, id, priority, packed, now)
  if redis.call('HEXISTS', meta, id) == 1 then return end
  local number = string.format('%016x', redis.call('INCR', seq))
  priority = tonumber(priority) or 0
  redis.call('HSET', meta, id, string.format('1 %s %.0f 0 0 0 %.0f -', number, priority, now))
  redis.call('HSET', body, id, packed)
  redis.call('ZADD', ready, int(-priority), number .. ':' .. id)
end
