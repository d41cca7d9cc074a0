-- Lease the deliveries that are next, over all callbacks of one queue that this process has.
-- KEYS: ready, delay, lease, dead, meta, body, error of each callback, then paused
-- ARGV: when the caller has given up, ms by the server's clock, or 0; most deliveries, lease ms, owner,
--       most losses, pause after a repeated loss ms, whether expired leases may be taken over (1 or 0),
--       whether `paused` holds these (1 or 0), most moves a callback
-- Returns: late, now (the caller has given up: nothing was done) | ok | again (more is due than one call
--          may move), now, ms to the next due item or -1, dropped, number of leases, indices (from 0)
--          of callbacks that have a key of a wrong type, then for each delivery: index of its callback,
--          id, token (0: lost too often and dead now), failures, lost, body

local now = now_ms()
local latest = take_number()
if latest > 0 and now > latest then return { 'late', int(now) } end
local most, lease, owner, max_lost, pause = take_number(), take_number(), take(), take_number(), take_number()
local reap, pausable, moves = take() == '1', take() == '1', take_number()
local sound, broken = sound_ones(0, (#KEYS - 1) / 7)
local dropped, more, heads, rows = 0, false, {}, {}
local paused = pausable and redis.call('EXISTS', KEYS[#KEYS]) == 1

local function add_row(index, keys, id, meta, token)
  local body = redis.call('HGET', keys.body, id) or ''
  for _, item in ipairs({ index, id, token, meta.failures, meta.lost, body }) do rows[#rows + 1] = item end
end

-- Call a function with each member of a list; one without a readable meta is dropped.
local function each(index, members, visit)
  local keys = keys_of(7 * index)
  if #members == moves then more = true end
  for _, member in ipairs(members) do
    local id = id_of(member)
    local meta = read_meta(keys.meta, id)
    if meta and meta.member == member then
      visit(keys, member, id, meta)
    else
      -- A stray member must not take the delivery along whose id it bears.
      remove(keys, member, meta)
      dropped = dropped + 1
    end
  end
end

for _, i in ipairs(sound) do
  local keys = keys_of(7 * i)
  local due = { '-inf', int(now), 'LIMIT', 0, moves }
  each(i, redis.call('ZRANGEBYSCORE', keys.delay, unpack(due)), function(_, member, _, meta)
    redis.call('ZREM', keys.delay, member)
    redis.call('ZADD', keys.ready, int(-meta.priority), member)
  end)
  local over = reap and redis.call('ZRANGEBYSCORE', keys.lease, unpack(due)) or {}
  each(i, over, function(_, member, id, meta)
    if lose(keys, member, id, meta, max_lost, now, pause) then add_row(i, keys, id, meta, 0) end
  end)
end

for _, i in ipairs((more or paused) and {} or sound) do
  local head = redis.call('ZRANGE', KEYS[7 * i + 1], 0, most - 1, 'WITHSCORES')
  for k = 1, #head, 2 do
    heads[#heads + 1] = { member = head[k], score = tonumber(head[k + 1]), index = i }
  end
end
table.sort(heads, function(a, b)
  if a.score ~= b.score then return a.score < b.score end
  return a.member < b.member
end)
for k = 1, math.min(most, #heads) do
  each(heads[k].index, { heads[k].member }, function(keys, member, id, meta)
    meta.token, meta.owner = meta.token + 1, owner
    redis.call('ZREM', keys.ready, member)
    redis.call('ZADD', keys.lease, int(now + lease), member)
    write_meta(keys.meta, id, meta)
    add_row(heads[k].index, keys, id, meta, meta.token)
  end)
end

local held = 0
for _, i in ipairs(sound) do held = held + redis.call('ZCARD', KEYS[7 * i + 3]) end
return { more and 'again' or 'ok', int(now), next_due(sound, now), dropped, held, broken, unpack(rows) }
