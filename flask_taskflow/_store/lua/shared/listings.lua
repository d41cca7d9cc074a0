-- Shared by the steps on the tasks of a person. `owner:<MAC of the owner>` and `address:<MAC of an address>` list the
-- ids of a queue's tasks, by when they are forgotten at the latest; there is one for each secret key.
-- Needs: base, courses, expiry, tasks

-- The ids that some indexes list, each once.
local function listed(indexes)
  local ids, seen = {}, {}
  for _, index in ipairs(indexes) do
    for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
      if not seen[id] and string.match(id, '^[a-z2-7]+$') then append(ids, { id }) end
      seen[id] = true
    end
  end
  return ids
end

-- Those of them that can still end.
local function listed_open(indexes, now)
  local ids = {}
  for _, id in ipairs(listed(indexes)) do
    local status, expires = unpack(redis.pcall('HMGET', queue_keys .. 'task:' .. id, 'status', 'expires'))
    if tonumber(expires) and not closed_for_good(status, expires, now) then append(ids, { id }) end
  end
  return ids
end

local function list_one(index, id, forgotten, now)
  local gone = redis.call('ZRANGEBYSCORE', index, '-inf', int(now), 'LIMIT', 0, 100)
  if #gone > 0 then redis.call('ZREM', index, unpack(gone)) end
  redis.call('ZADD', index, int(forgotten), id)
  expire_with_last(index)
end

-- What cannot be listed, as where something else has the key, fails no step.
local function list_under(indexes, id, forgotten, now)
  for _, index in ipairs(indexes) do pcall(list_one, index, id, forgotten, now) end
end
