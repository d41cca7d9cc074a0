-- Shared by the steps that lease deliveries: what of a queue is next, and how many may run.

-- Note of how many more may run of each callback, over all of its names; `told` is `<number> <callback>` of each.
local function make_rooms(sets, told)
  local rooms = {}
  for i, keys in ipairs(sets) do
    local most, callback = string.match(told[i], '^(%d+) (.*)$')
    if most ~= '0' then
      local held = redis.pcall('ZCARD', keys.lease)
      keys.room = rooms[callback] or { left = tonumber(most) }
      keys.room.left = keys.room.left - (tonumber(held) or 0)
      rooms[callback] = keys.room
    end
  end
end

-- The heads of all that is ready, the most urgent first; none of a callback of which as many run as may.
local function heads_of(sets, most)
  local heads = {}
  for _, keys in ipairs(sets) do
    local may = keys.room and math.min(keys.room.left, most) or most
    local head = may > 0 and redis.call('ZRANGE', keys.ready, 0, may - 1, 'WITHSCORES') or {}
    for k = 1, #head, 2 do
      heads[#heads + 1] = { member = head[k], score = tonumber(head[k + 1]), keys = keys }
    end
  end
  table.sort(heads, function(a, b)
    if a.score ~= b.score then return a.score < b.score end
    return a.member < b.member
  end)
  return heads
end
