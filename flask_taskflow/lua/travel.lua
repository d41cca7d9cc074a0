-- For tests: make one key look older. Not used in production.
-- KEYS: any key of a queue
-- ARGV: by how much, ms
-- Returns: ok

local key, shift = KEYS[1], take_number()
local kind = string.match(key, ':(%a+)$')

local function older(field)
  local value = tonumber(redis.call('HGET', key, field))
  if value then redis.call('HSET', key, field, int(value - shift)) end
end

local holds = redis.call('TYPE', key).ok
if holds == 'zset' and kind ~= 'ready' then
  local members = redis.call('ZRANGE', key, 0, -1)
  for _, member in ipairs(members) do redis.call('ZINCRBY', key, int(-shift), member) end
elseif kind == 'recipients' then
  for _, mac in ipairs(redis.call('HKEYS', key)) do
    local entry = read_recipient(key, mac, 0)
    redis.call('HSET', key, mac, string.format('%.0f %.0f %.0f %.0f', entry.sends,
      math.max(entry.sends_end - shift, 0), entry.failures, math.max(entry.failures_end - shift, 0)))
  end
elseif kind == 'meta' then
  for _, id in ipairs(redis.call('HKEYS', key)) do
    local head, at, owner = string.match(redis.call('HGET', key, id), '^(.* )(%d+) (%S+)$')
    redis.call('HSET', key, id, head .. int(tonumber(at) - shift) .. ' ' .. owner)
  end
elseif holds == 'hash' then
  for _, field in ipairs(redis.call('HKEYS', key)) do
    local what = string.match(field, '%.?(%l+)$')
    local timed = what == 'created' or what == 'expires' or what == 'verified' or what == 'next'
      or what == 'until'
    if timed or (kind == 'handlers' and field ~= '#epoch') then older(field) end
  end
end

local left = redis.call('PTTL', key)
if left > 0 then redis.call('PEXPIRE', key, int(math.max(left - shift, 0))) end
return { 'ok' }
