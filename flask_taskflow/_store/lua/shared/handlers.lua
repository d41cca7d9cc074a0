-- Shared by the steps that end tasks or register callbacks: the callbacks of a queue.
-- `handlers` maps a callback's name to when a process last said it has it, and `#alias:<old name>` to the
-- name that took its place. Deliveries are stored under the current names: each registered one once, and in
-- the place of an old name the new one. Names after `+` are of what follows other ends, see listeners.lua.
-- `#epoch` is the digest of the current names and the aliases.
-- Needs: base

-- The rule of `_checks.NAME`. What somebody wrote from outside is no name unless it follows it.
local function is_name(text) return string.find(text, '^[%w_.-]+$') and #text <= 64 end

-- The names and the aliases (old name -> new name) that are registered.
local function registered(handlers)
  local names, renames, all = {}, {}, redis.call('HGETALL', handlers)
  for i = 1, #all, 2 do
    local old = string.match(all[i], '^#alias:(.+)$')
    if old and is_name(old) and is_name(all[i + 1]) then renames[old] = all[i + 1]
    elseif is_name(all[i]) then append(names, { all[i] }) end
  end
  return names, renames
end

-- All names under which deliveries may stand.
local function all_names(handlers)
  local names, renames = registered(handlers)
  for old, new in pairs(renames) do append(names, { old, new }) end
  return names
end

-- The same, with the names of what follows other ends.
local function names_kept(handlers)
  local names = all_names(handlers)
  for _, name in ipairs(redis.call('HKEYS', handlers)) do
    if string.sub(name, 1, 1) == '+' and is_name(string.sub(name, 2)) then append(names, { name }) end
  end
  return names
end

-- Sort names by their bytes, as Python does. Lua itself goes by the server's locale.
local function sort_names(names)
  table.sort(names, function(one, other)
    for i = 1, math.min(#one, #other) do
      local a, b = string.byte(one, i), string.byte(other, i)
      if a ~= b then return a < b end
    end
    return #one < #other
  end)
end

-- Aliases as a flat list, sorted: old name, new name, ...
local function in_pairs(renames)
  local list, olds = {}, {}
  for old in pairs(renames) do append(olds, { old }) end
  sort_names(olds)
  for _, old in ipairs(olds) do append(list, { old, renames[old] }) end
  return list
end

-- The name that took a name's place in the end. Of names that took each other's place it is the first by its bytes.
local function newest_name(name, renames)
  local seen, round = {}, {}
  while renames[name] and not seen[name] do seen[name], name = true, renames[name] end
  while seen[name] do
    append(round, { name })
    seen[name], name = nil, renames[name]
  end
  sort_names(round)
  return round[1] or name
end

-- The current names, sorted.
local function current(names, renames)
  local list, seen = {}, {}
  for _, name in ipairs(names) do
    name = newest_name(name, renames)
    if not seen[name] then append(list, { name }) end
    seen[name] = true
  end
  sort_names(list)
  return list
end

-- What is registered once a caller's own names and aliases (flat) are, too.
local function joined(handlers, own, aliases)
  local names, renames = registered(handlers)
  append(names, own)
  for i = 1, #aliases, 2 do renames[aliases[i]] = aliases[i + 1] end
  return names, renames
end

local function same(one, other) return table.concat(one, ',') == table.concat(other, ',') end

local function register(handlers, own, aliases, now)
  free(handlers, {})
  for _, name in ipairs(own) do redis.call('HSET', handlers, name, int(now)) end
  for i = 1, #aliases, 2 do redis.call('HSET', handlers, '#alias:' .. aliases[i], aliases[i + 1]) end
  local names, renames = registered(handlers)
  if #names > 0 then
    local parts = current(names, renames)
    append(parts, in_pairs(renames))
    redis.call('HSET', handlers, '#epoch', redis.sha1hex(table.concat(parts, ',')))
  end
end
