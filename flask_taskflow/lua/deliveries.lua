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

-- Whether a key may be used by this command's kind: Redis stops a script at a key of the wrong type.
local function fits(key, command) return type(redis.pcall(command, key)) == 'number' end

-- The indices, from 0, of the callbacks whose keys all fit, and of the others, as a string. KEYS has
-- seven for each, from after `base`; the steps over several callbacks pass the others by.
local function sound_ones(base, count)
  local sound, broken = {}, {}
  for i = 0, count - 1 do
    local fine = true
    for k = 1, 7 do fine = fine and fits(KEYS[base + 7 * i + k], k < 5 and 'ZCARD' or 'HLEN') end
    local list = fine and sound or broken
    list[#list + 1] = i
  end
  return sound, table.concat(broken, ' ')
end

-- Forget a delivery wherever it stands, or only a member that is not the delivery's own.
local function remove(keys, member, stray)
  for _, name in ipairs({ 'ready', 'delay', 'lease', 'dead' }) do
    redis.call('ZREM', keys[name], member)
  end
  for _, name in ipairs(stray and {} or { 'meta', 'body', 'error' }) do
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
