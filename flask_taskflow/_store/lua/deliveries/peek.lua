-- Look what is due in several queues, for callbacks that a process has, which waits where nothing is ready. It is
-- told on its own channel, so that its listener hears that it is heard.
-- Needs: base, deliveries, soundness, waiting
-- KEYS: for each queue: pending, paused, waiting, then ready, delay, lease, dead, meta, body, error of each callback
-- ARGV: channel of the process or empty, list of how many callbacks each queue has, list of whether `paused` holds them (1 or 0),
--       list of what waiting.lua calls the process in each queue, or empty
-- Returns: ok, now, then for each queue: priority of the first that is ready or empty, ms until a delay or a lease
--          ends or -1, number of leases, 1 if a task has expired of which nobody was told

local now, channel, counts, pausable, callers = now_ms(), take(), take_list(), take_list(), take_list()
local reply, k = { 'ok', int(now) }, 1

-- Forget those that said nothing for long: their processes are gone.
local function forget_waiting(waiting, now)
  local gone = redis.pcall('ZRANGEBYSCORE', waiting, '-inf', int(now - line_kept), 'LIMIT', 0, 100)
  for _, who in ipairs(gone) do redis.call('ZREM', waiting, who) end
end

local function first(key) return tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]) end

local function least(one, other) return other and math.min(one or math.huge, other) or one end

local function has_expired(pending)
  local tasks = redis.pcall('ZRANGEBYSCORE', pending, '-inf', int(now), 'LIMIT', 0, 1)
  return #tasks > 0 and 1 or 0
end

if channel ~= '' then redis.pcall('PUBLISH', channel, '') end
for i, count in ipairs(counts) do
  local score, soonest, held = nil, nil, 0
  local paused = pausable[i] == '1' and redis.call('EXISTS', KEYS[k + 1]) == 1
  local last = k + 2 + 7 * tonumber(count)
  -- A turn passes by what something else has spoiled, so nothing is due there.
  for _, keys in ipairs((sound_ones(key_sets(k + 3, last)))) do
    if not paused then score = least(score, first(keys.ready)) end
    soonest = least(least(soonest, first(keys.delay)), first(keys.lease))
    held = held + redis.call('ZCARD', keys.lease)
  end
  forget_waiting(KEYS[k + 2], now)
  if not (score or paused) then line_up(KEYS[k + 2], callers[i], now) end
  append(reply, { score and int(-score) or '', soonest and int(math.max(soonest - now, 0)) or '-1', held, has_expired(KEYS[k]) })
  k = last + 1
end
return reply
