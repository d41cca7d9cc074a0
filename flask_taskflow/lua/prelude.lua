-- Shared by every step: the store puts this and the other shared files in front of each.
-- A task's hash has lower-case fields (fixed, seal, status, created, expires, ...), `address.<field>`,
-- `seal.<field>`, `mac.<field>` for each address, and `<METHOD>.<what>` for each allowed method:
--   field   recipient field it sends to, or empty    sends  messages so far
--   next    ms when a resend is allowed              nonce  what the code was derived from
--   digest  HMAC of the code                         until  ms when the code ends
--   out     sends of this code not known to have failed; the code is in force while it is positive
-- Times are milliseconds by the server's clock. Replies begin with a word.

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function int(number) return string.format('%.0f', number) end

local cursor = 0
local function take()
  cursor = cursor + 1
  return ARGV[cursor]
end
local function take_number() return tonumber(take()) end
-- A list is its length, then its items.
local function take_list()
  local list = {}
  for i = 1, take_number() do list[i] = take() end
  return list
end

local function load(key)
  local flat, map = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end

-- The word that forbids a step on a task which is not pending, or nil.
local function ended(status, expires, now)
  if not status then return { 'unknown' } end
  if status ~= 'PENDING' then return { 'finished', status } end
  if now >= tonumber(expires) then return { 'expired' } end
end

-- Keep a key just as long as its last member, whose score is when to forget it.
local function expire_with_last(index, other)
  local last = redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')
  if last[2] then
    redis.call('PEXPIREAT', index, last[2])
    if other then redis.call('PEXPIREAT', other, last[2]) end
  end
end

-- Delete fields of a hash. Also the first write of steps that must work when memory is full: Redis
-- refuses a script's first write only, and never HDEL.
local function free(key, names) redis.call('HDEL', key, '', unpack(names)) end

-- End a task: its codes go first, then the status; kept for `retention` ms.
local function finish(task, pending, id, status, retention)
  local codes = {}
  for _, name in ipairs(redis.call('HKEYS', task)) do
    if string.find(name, '^%u.*%.%l') then codes[#codes + 1] = name end
  end
  free(task, codes)
  redis.call('HSET', task, 'status', status)
  redis.call('PEXPIRE', task, int(retention))
  redis.call('ZREM', pending, id)
end

-- Forget expired tasks and recipients, at most 1,000 of each; true if there may be more.
local function trim(pending, recipients, expiry, now)
  local tasks = redis.call('ZRANGEBYSCORE', pending, '-inf', int(now), 'LIMIT', 0, 1000)
  if #tasks > 0 then redis.call('ZREM', pending, unpack(tasks)) end
  local macs = redis.call('ZRANGEBYSCORE', expiry, '-inf', int(now), 'LIMIT', 0, 1000)
  if #macs > 0 then
    redis.call('ZREM', expiry, unpack(macs))
    redis.call('HDEL', recipients, unpack(macs))
  end
  return #tasks == 1000 or #macs == 1000
end
