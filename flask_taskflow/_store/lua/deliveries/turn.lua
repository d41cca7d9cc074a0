-- One turn of an engine at one queue: report how attempts ended, then lease what is next, over all callbacks of
-- the queue that this process has.
-- Needs: base, claims, deliveries, ends, heads, outcomes, soundness, waiting
-- KEYS: paused, waiting, then ready, delay, lease, dead, meta, body, error of each callback
-- ARGV: how many ends, for each: index of the callback from 0, how it ended, and what ends.lua takes;
--       when the caller has given up, ms by the server's clock, or 0; most deliveries, those of them for which a
--       place is free, the least priority, lease ms, owner, most losses, pause after a repeated loss ms,
--       whether expired leases may be taken over (1 or 0), whether `paused` holds these (1 or 0),
--       most moves a callback, what waiting.lua calls the process, or empty,
--       list, for each name, of how many may run at once of its callback, 0 for any number, and the callback
-- Returns: late (the caller has given up: nothing was leased) | ok | again (more is due than one call may
--          move), now, list of a word for each end, ms to the next due item or -1, priority of what is left or
--          empty, dropped, number of leases, indices (from 0) of callbacks that have a key of a wrong type, then
--          for each delivery: index of its callback, id, token (0: lost too often and dead now), failures, lost,
--          1 if it was lost once before it was started, body

local sets, now, words = key_sets(3), now_ms(), {}
local sound, broken = sound_ones(sets)
local fine, reports = {}, { ack = ack, fail = fail, bury = bury, release = release }
for _, keys in ipairs(sound) do fine[keys.index] = keys end
for i = 1, take_number() do
  local keys, report, told = fine[take_number()], reports[take()], take_end()
  words[i] = keys and report(keys, told, now) or 'spoiled'
end

local latest, given = take_number(), {}
given.most, given.places, given.floor = take_number(), take_number(), take_number()
given.lease, given.owner = take_number(), take()
given.limits = { max_lost = take_number(), pause = take_number() }
given.reap, given.paused = take() == '1', take() == '1' and redis.call('EXISTS', KEYS[1]) == 1
given.moves, given.who = take_number(), take()
local limits = take_list()
if latest > 0 and now > latest then return { 'late', int(now), words } end

local more, dropped, rows = move_due(sound, given, now)
local left = ''
if not (more or given.paused) then
  make_rooms(sets, limits)
  local leased, gone
  leased, gone, left = lease_next(sound, given, now)
  append(rows, leased)
  dropped = dropped + gone
  -- One that leaves something wakes the next.
  if left ~= '' then
    wake(KEYS[2], served_by(given.who), true)
  elseif #leased / 7 < given.places then
    line_up(KEYS[2], given.who, now)
  end
end
local held = 0
for _, keys in ipairs(sound) do held = held + redis.call('ZCARD', keys.lease) end
local word = more and 'again' or 'ok'
return { word, int(now), words, next_due(sound, now), left, dropped, held, broken, unpack(rows) }
