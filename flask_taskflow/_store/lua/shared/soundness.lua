-- Shared by the steps over several callbacks or sends, which pass those by that something else has spoiled:
-- Redis stops a script at a key of a wrong type.

-- Whether a key may be used by this command's kind.
local function fits(key, command) return type(redis.pcall(command, key)) == 'number' end

local function is_sound(keys)
  local fine = true
  for _, place in ipairs({ 'ready', 'delay', 'lease', 'dead' }) do fine = fine and fits(keys[place], 'ZCARD') end
  for _, name in ipairs({ 'meta', 'body', 'error' }) do fine = fine and fits(keys[name], 'HLEN') end
  return fine
end

-- The sets of keys that all fit, and the indices of the others, as a string.
local function sound_ones(sets)
  local sound, broken = {}, {}
  for _, keys in ipairs(sets) do
    if is_sound(keys) then sound[#sound + 1] = keys else broken[#broken + 1] = keys.index end
  end
  return sound, table.concat(broken, ' ')
end
