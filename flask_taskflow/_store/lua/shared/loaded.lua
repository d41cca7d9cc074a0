-- Shared by the steps that read a task as a whole.
-- Needs: base

-- A task as a table of its fields.
local function load(key)
  local flat, map = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end

-- The fields and values of a loaded task, as a reply shows it.
local function fields_of(task)
  local flat = {}
  for name, value in pairs(task) do
    local last = #flat
    flat[last + 1], flat[last + 2] = name, value
  end
  return flat
end

-- The allowed methods in order; or from one of them on, then those before it.
local function methods_of(task, first)
  local from, before = {}, {}
  for name in string.gmatch(task.methods, '[^,]+') do
    append((not first or name == first or #from > 0) and from or before, { name })
  end
  append(from, before)
  return from
end

-- The mac of the address that a method sends to: empty if it needs none, else nil if there is none; after `~`
-- if a device makes the codes.
local function mac_of(task, method)
  local field, mark = task[method .. '.field'], task[method .. '.checks'] and '~' or ''
  if field == '' then return mark end
  local mac = field and task['mac.' .. field]
  return mac and mark .. mac
end
