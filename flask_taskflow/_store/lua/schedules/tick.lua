-- Let schedules tick: store what is due, and what follows. Whoever comes second finds another state than the one
-- that it read, and does nothing.
-- A state is `<digest of the definition> <due ms> <next tick ms> <last tick ms> <seal>`.
-- Needs: base, deliveries, enqueue, soundness
-- KEYS: schedules, paused, seq, then ready, delay, lease, dead, meta, body, error of each schedule
-- ARGV: list of (name, the state that the caller read or empty, the state that follows, 1 if that must be due first),
--       list of (index of the schedule from 0, id, body, delay ms) of what is stored with it
-- Returns: ok, now, then for each schedule: its state, and set | early | paused | broken (a
--          key has a wrong type) | other (another state is stored)

local schedules, seq, now, sets = KEYS[1], KEYS[3], now_ms(), key_sets(4)
local held, rows, ticks, reply, done = redis.call('EXISTS', KEYS[2]) == 1, take_list(), take_list(), {}, {}
check_number(seq)
local _, broken = sound_ones(sets)
for index in string.gmatch(broken, '%d+') do sets[index + 1] = false end
free(schedules, {})
for i = 1, #rows, 4 do
  local name, read, proposed, index = rows[i], rows[i + 1], rows[i + 2], (i - 1) / 4
  local state, word = redis.call('HGET', schedules, name) or '', 'set'
  local due = tonumber(string.match(state, '^%S+ (%d+) ')) or 0
  if state ~= read then
    word = 'other'
  elseif held or redis.call('HEXISTS', schedules, name .. ':paused') == 1 then
    word = 'paused'
  elseif rows[i + 3] == '1' and due > now then
    word = 'early'
  elseif not sets[index + 1] then
    word = 'broken'
  else
    redis.call('HSET', schedules, name, proposed)
    state = proposed
  end
  done[index] = word == 'set'
  append(reply, { state, word })
end
for i = 1, #ticks, 4 do
  local index = tonumber(ticks[i])
  if done[index] then
    enqueue(seq, sets[index + 1], ticks[i + 1], 0, ticks[i + 2], now, now + tonumber(ticks[i + 3]))
  end
end
return { 'ok', int(now), unpack(reply) }
