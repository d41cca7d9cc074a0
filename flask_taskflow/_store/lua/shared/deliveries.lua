-- Shared by the steps on deliveries. A delivery is one callback's share of a verified task, or the send of
-- a code by one method; its id is the task's id. It stands, as `<16 hex digits>:<id>`, in exactly one of
--   ready  score -priority       delay  score when it is due
--   lease  score its deadline    dead   score when it died
-- and has a line in meta: `1 <number> <priority> <failures> <lost> <token> <ready at ms> <owner>`: when it could run the
-- first time, or again. Before the owner stands `+` if it was claimed ahead, while no place was free, and `~` if it was
-- lost so once; and before that `!` if the task ended once more while what follows its end ran: it has another body
-- then, for the next run.
-- Needs: base

local places = { 'ready', 'delay', 'lease', 'dead' }

-- The keys of each callback or send, seven for each from KEYS[first] on, or only to KEYS[last]; their index counts
-- from 0.
local function key_sets(first, last)
  local sets = {}
  for i = first, last or #KEYS, 7 do
    sets[#sets + 1] = {
      index = #sets, ready = KEYS[i], delay = KEYS[i + 1], lease = KEYS[i + 2], dead = KEYS[i + 3],
      meta = KEYS[i + 4], body = KEYS[i + 5], error = KEYS[i + 6],
    }
  end
  return sets
end

local function read_meta(key, id)
  local raw = redis.call('HGET', key, id) or ''
  local number, priority, failures, lost, token, ready_at, owner =
    string.match(raw, '^1 (%x+) (-?%d+) (%d+) (%d+) (%d+) (%d+) (%S+)$')
  if not number or #number ~= 16 then return nil end
  return {
    number = number, priority = tonumber(priority), failures = tonumber(failures),
    lost = tonumber(lost), token = tonumber(token), ready_at = tonumber(ready_at), owner = owner,
    member = number .. ':' .. id,
  }
end

local function write_meta(key, id, meta)
  redis.call('HSET', key, id, table.concat({ '1', meta.number, int(meta.priority), int(meta.failures),
    int(meta.lost), int(meta.token), int(meta.ready_at), meta.owner }, ' '))
end

local function was_spared(meta) return string.sub(meta.owner, 1, 1) == '~' end

-- The process that a delivery is leased to.
local function holder_of(meta) return (string.gsub(meta.owner, '^[!+~]+', '')) end

-- What stands in meta for an owner that claims a delivery.
local function owner_of(meta, owner, ahead)
  return (was_spared(meta) and '~' or ahead and '+' or '') .. owner
end

-- Note that a delivery was lost that may not have been started; false if it was started.
local function spare(meta)
  if string.sub(meta.owner, 1, 1) ~= '+' then return false end
  meta.owner = '~' .. holder_of(meta)
  return true
end

-- Let a delivery that runs begin anew once that ends.
local function mark_anew(keys, id, meta)
  meta.owner = '!' .. holder_of(meta)
  write_meta(keys.meta, id, meta)
end

-- Let it begin anew, if it is marked so; answers whether it is. No report of an earlier run is one of the next.
local function begin_anew(keys, id, meta, now)
  if string.sub(meta.owner, 1, 1) ~= '!' then return false end
  for _, place in ipairs(places) do redis.call('ZREM', keys[place], meta.member) end
  meta.failures, meta.lost, meta.token, meta.ready_at, meta.owner = 0, 0, meta.token + 1, now, '-'
  write_meta(keys.meta, id, meta)
  redis.call('ZADD', keys.ready, int(-meta.priority), meta.member)
  return true
end

local function id_of(member) return string.sub(member, 18) end

-- Forget a delivery wherever it stands, or only a member that is not the delivery's own.
local function remove(keys, member, stray)
  for _, place in ipairs({ 'lease', 'ready', 'delay', 'dead' }) do
    if redis.call('ZREM', keys[place], member) == 1 and not stray then break end
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
