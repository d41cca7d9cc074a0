-- Shared by the steps that store deliveries of verified tasks.

-- A task's strings in one: `<length>:<field><length>:<value>...`, without what belongs to its codes.
local function pack_task(fields)
  local parts = {}
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if not string.find(name, '^%u') then parts[#parts + 1] = #name .. ':' .. name .. #value .. ':' .. value end
  end
  return table.concat(parts)
end
