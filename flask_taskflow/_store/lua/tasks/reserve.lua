-- Count an attempt before a code is checked that the server did not make.
-- Needs: attempts, base, fingerprints, finishing, happenings, loaded, recipients, tasks
-- KEYS: task, pending, the four of recipients.lua, decoy
-- ARGV: id, method, retention ms, most attempts, failure window ms,
--       most failures of a recipient, list of the code's digests (one per secret key),
--       whether the holder's secret was brought (1 or 0), list of fields and values of a decoy
-- Returns: unknown | finished, status | expired | key_missing, fingerprint | not_holder | blocked |
--          not_allowed, left | locked | again (it was ended by this code just now), now, fields | ok, now, fields, left;
--          after all but the last two comes the decoy, so that they take as long

local keys = {
  task = KEYS[1], pending = KEYS[2], recipients = counts_at(3), decoy = KEYS[7],
}
local now, id, method, retention = now_ms(), take(), take(), take_number()
local most, window, most_failures = take_number(), take_number(), take_number()
local digests, held, decoy = take_list(), take(), take_list()
local own = fingerprints_of(digests)

local function refused(reply)
  redis.call('HMGET', keys.task, unpack(decoy))
  append(reply, { decoy })
  return reply
end

local got = look(keys.task, method .. '.field', unpack(seals))
local again = not not_held(own, got[5], held, got[7]) and repeated(keys.task, got, digests, now)
if again then return again end
local over = strange(keys, own, got[5], held, got[7], now) or closed(keys, own, got[1], got[2], now)
  or lacks_key(own, { unpack(got, 7) })
if over then return refused(over) end

local mac, owner = counted_for(keys.task, got[6])
local budget = read_budget(keys.recipients, mac, owner, now)
if blocked_for(budget, most_failures, window, now) then
  pretend(keys, own, now, 'limits failures')
  happened.blocked(id, method, now)
  return refused({ 'blocked' })
end
local left = most - count_wrong(keys, own, keys.task, method, budget, owner, window, now)
-- One that was reserved before may be right and on its way: it ends the task, or `lock` does.
if left < 0 then return refused({ 'finished', 'LOCKED' }) end
if not got[6] then
  happened.refused(id, method, 'method_not_allowed', now)
  if left > 0 then return refused({ 'not_allowed', left }) end
  finish(load(keys.task), keys.task, keys.pending, id, 'LOCKED', retention, now)
  return refused({ 'locked' })
end
happened.tried(id, method, now)
local reply = answer('ok', keys.task, now)
append(reply, { left })
return reply
