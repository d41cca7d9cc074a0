-- Shared by the engine's steps. A delivery is one callback's share of a verified task; its id is the
-- task's id. It stands, as `<16 hex digits>:<id>`, in exactly one of
--   ready  score -priority       delay  score when it is due
--   lease  score its deadline    dead   score when it died
-- and has a line in meta: `1 <number> <priority> <failures> <lost> <token> <enqueued ms> <owner>`.

local function read_meta(key, id)
  local raw = redis.call('HGET', key, id) or ''
  local number, priority, failures, lost, token, enqueued, owner =
    string.match(raw, '^1 (%x+) (-?%d+) (%d+) (%d+) (%d+) (%d+) (%S+)$')
  if not number or #number ~= 16 then return nil end
  return {
    number = number, priority = tonumber(priority), failures = tonumber(failures),
    lost = tonumber(lost), token = tonumber(token), enqueued = enqueued, owner = owner,
    member = number .. ':' .. id,
  }
end

local function write_meta(key, id, meta)
  redis.call('HSET', key, id, string.format('1 %s %.0f %.0f %.0f %.0f %s %s', meta.number,
    meta.priority, meta.failures, meta.lost, meta.token, meta.enqueued, meta.owner))
end

local function id_of(member) return string.sub(member, 18) end

-- The keys of one callback, from the index before the first of them.
local function keys_of(base)
  return {
    ready = KEYS[base + 1], delay = KEYS[base + 2], lease = KEYS[base + 3], dead = KEYS[base + 4],
    meta = KEYS[base + 5], body = KEYS[base + 6], error = KEYS[base + 7],
  }
end

-- Forget a delivery wherever it stands.
local function remove(keys, member)
  for _, name in ipairs({ 'ready', 'delay', 'lease', 'dead' }) do
    redis.call('ZREM', keys[name], member)
  end
  for _, name in ipairs({ 'meta', 'body', 'error' }) do
    redis.call('HDEL', keys[name], id_of(member))
  end
end

-- Take a running delivery from its lease, if the token is the newest one; answers its meta or nil.
local function take_back(keys, id, token)
  local meta = read_meta(keys.meta, id)
  if meta and meta.token == token and redis.call('ZREM', keys.lease, meta.member) == 1 then
    return meta
  end
end

-- Count a failed attempt and put the delivery into `place`; answers the reply.
local function fail_into(place, score)
  local id, token, message = take(), take_number(), take()
  local keys = keys_of(0)
  local meta = take_back(keys, id, token)
  if not meta then return { 'stale' } end
  meta.failures = meta.failures + 1
  write_meta(keys.meta, id, meta)
  redis.call('HSET', keys.error, id, message)
  redis.call('ZADD', keys[place], int(score), meta.member)
  return { 'ok' }
end

-- Count a lost process: at once again, then after a pause, then dead (answers true).
local function lose(keys, member, id, meta, max_lost, now, pause)
  redis.call('ZREM', keys.lease, member)
  meta.lost = meta.lost + 1
  write_meta(keys.meta, id, meta)
  if meta.lost > max_lost then
    redis.call('HSET', keys.error, id, 'lost with its process ' .. meta.lost .. ' times')
    redis.call('ZADD', keys.dead, int(now), member)
    return true
  elseif meta.lost == 1 then
    redis.call('ZADD', keys.ready, int(-meta.priority), member)
  else
    redis.call('ZADD', keys.delay, int(now + pause), member)
  end
end

-- Milliseconds until something is due in the delays and leases of the callbacks, or -1.
local function next_due(last, now)
  local soonest
  for i = 0, last do
    for _, key in ipairs({ KEYS[7 * i + 2], KEYS[7 * i + 3] }) do
      local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
      if first[2] then soonest = math.min(soonest or math.huge, tonumber(first[2])) end
    end
  end
  return soonest and int(math.max(soonest - now, 0)) or '-1'
end
