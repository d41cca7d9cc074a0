-- Consume a code: count a wrong one, or end the task and store one delivery per callback.
-- Needs: attempts, base, fingerprints, finishing, happenings, loaded, recipients, success, tasks
-- KEYS: see success.lua
-- ARGV: see success.lua, then most attempts, most failures of a recipient,
--       list of digests (one per secret key), list of what proves that each was presented,
--       whether the holder's secret was brought (1 or 0)
-- Returns: unknown | finished, status | expired | key_missing, fingerprint | not_holder | blocked |
--          wrong, left, wait ms | code_expired, left, wait ms | not_allowed, left | locked |
--          ok, now, fields, number of deliveries |
--          again (it was ended by this code just now), now, fields |
--          resubscribe, list of registered callbacks, list of (old name, new name)

local now, keys, given = now_ms(), success_keys(), take_success()
local most, most_failures, digests, presented = take_number(), take_number(), take_list(), take_list()
local held = take()
local method, window, own = given.method, given.window, fingerprints_of(digests)

local got = look(keys.task, method .. '.digest', method .. '.until', method .. '.out', method .. '.field',
  method .. '.issued', method .. '.next', unpack(seals))
local over = strange(keys, own, got[5], held, got[12], now) or repeated(keys.task, got, digests, now)
  or closed(keys, own, got[1], got[2], now)
if over then
  linger(keys, 3)
  return over
end
local lacks = lacks_key(own, { got[6], unpack(got, 12) })
if lacks then return lacks end
local expected, ends, out, field, issued, again = unpack(got, 6, 11)
local mac, owner = counted_for(keys.task, field)
local budget = read_budget(keys.recipients, mac, owner, now)
if blocked_for(budget, most_failures, window, now) then
  pretend(keys, own, now, 'limits failures')
  happened.blocked(given.id, method, now)
  return { 'blocked' }
end

local armed = expected and tonumber(out) > 0
local word = (not field and 'not_allowed') or (not armed and 'wrong')
  or (now >= tonumber(ends) and 'code_expired') or 'wrong'
local proof
for i, digest in ipairs(digests) do
  if armed and word == 'wrong' and digest == expected then
    proof = table.concat({ expected, issued or '', presented[i] }, ' ')
  end
end
if proof then return succeed(keys, given, mac, budget, proof, now) end

local left = most - count_wrong(keys, own, keys.task, method, budget, owner, window, now)
local causes = { wrong = 'wrong_code', code_expired = 'code_expired', not_allowed = 'method_not_allowed' }
happened.refused(given.id, method, causes[word], now)
if left > 0 then return { word, left, int(math.max((tonumber(again) or 0) - now, 0)) } end
finish(load(keys.task), keys.task, keys.pending, given.id, 'LOCKED', given.retention, now)
return { 'locked' }
