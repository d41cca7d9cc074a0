-- For tests: make one key look older. Not used in production.
-- Needs: base, recipients
-- KEYS: any key of a queue
-- ARGV: by how much, ms
-- Returns: ok

local key, shift = KEYS[1], take_number()
local kind = string.match(key, ':(%a+)$')

local function older(field)
  local value = tonumber(redis.call('HGET', key, field))
  if value then redis.call('HSET', key, field, int(value - shift)) end
end

-- A text, with each time in it so much earlier.
local function shifted(text)
  return (string.gsub(text, '%d+', function(at) return #at > 11 and int(at - shift) or at end))
end

local holds = redis.call('TYPE', key).ok
if holds == 'zset' and kind ~= 'ready' then
  local members = redis.call('ZRANGE', key, 0, -1)
  for _, member in ipairs(members) do redis.call('ZINCRBY', key, int(-shift), member) end
elseif kind == 'recipients' or kind == 'budgets' then
  for _, mac in ipairs(redis.call('HKEYS', key)) do
    local entry = read_name({ counts = key }, mac, 0)
    for _, name in ipairs({ 'ends', 'debt_end' }) do
      entry[name] = math.max(entry[name] - shift, 0)
    end
    redis.call('HSET', key, mac, text_of(entry))
  end
elseif kind == 'meta' then
  for _, id in ipairs(redis.call('HKEYS', key)) do
    local head, at, owner = string.match(redis.call('HGET', key, id), '^(.* )(%d+) (%S+)$')
    redis.call('HSET', key, id, head .. int(tonumber(at) - shift) .. ' ' .. owner)
  end
elseif kind == 'schedules' then
  for _, name in ipairs(redis.call('HKEYS', key)) do
    -- When it is due, or when each of its definitions was said last.
    local pattern = string.find(name, ':said$') and '(%x+ %d+ )(%d+)' or '^(%x+ )(%d+)'
    local value = string.gsub(redis.call('HGET', key, name), pattern, function(head, at)
      return head .. int(at - shift)
    end)
    redis.call('HSET', key, name, value)
  end
elseif holds == 'list' then
  for i, entry in ipairs(redis.call('LRANGE', key, 0, -1)) do
    redis.call('LSET', key, i - 1, shifted(entry))
  end
elseif holds == 'hash' and kind ~= 'counters' and kind ~= 'history' then
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.find(field, '^after%.') or string.find(field, '^%+') then redis.call('HSET', key, field, shifted(redis.call('HGET', key, field))) end
    local what = string.match(field, '%.?(%l+)$')
    local timed = what == 'created' or what == 'expires' or what == 'verified' or what == 'next'
      or what == 'until' or what == 'refused' or what == 'begun'
    if timed or field == 'run_at' or field == 'send_at' or (kind == 'handlers' and field ~= '#epoch') then older(field) end
  end
end

local left = redis.call('PTTL', key)
if left > 0 then redis.call('PEXPIRE', key, int(math.max(left - shift, 0))) end
return { 'ok' }
