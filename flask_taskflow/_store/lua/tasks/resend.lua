-- Count one more message and answer with the code it carries: the one in force, or the new one.
-- Needs: base, fingerprints, happenings, limits, loaded, recipients, sending, tasks
-- KEYS: task, pending, the four of recipients.lua, then see sending.lua
-- ARGV: id, channel, whether the code in force may be kept (1 or 0), limits,
--       fingerprints of the caller's secret keys, whether the holder's secret was brought (1 or 0),
--       list of method, nonce, digest, issued
-- Returns: unknown | finished, status | expired | too_late | key_missing, fingerprint | not_holder |
--          not_allowed | no_address | too_soon, wait ms | send_limit, wait ms | ok, now, fields

local key, pending, recipients = KEYS[1], KEYS[2], counts_at(3)
local now, id, channel, keep, limits = now_ms(), take(), take(), take() == '1', take_limits()
local own, held = take_list(), take()
local codes, methods = take_codes()
local method, task = methods[1], load(key)
local code, sends = codes[method], sends_at(7, methods, key, id, channel)
local refused = not_held(own, task.holder, held, task.seal) or sends_over(task, now)
  or lacks_key(own, { keep and task[method .. '.digest'] or false, unpack(seals_of(task)) })
if refused then return refused end

if not task[method .. '.field'] then return { 'not_allowed' } end
local mac = mac_of(task, method)
if not mac then return { 'no_address' } end

local wait = math.max(tonumber(task[method .. '.next']) or 0, start_of(task)) - now
if wait > 0 then
  happened.limited('cooldown', now)
  return { 'too_soon', int(wait) }
end
if is_message(mac) and tonumber(task.sends) >= limits.max_sends then
  happened.limited('task', now)
  return { 'send_limit', int(tonumber(task.expires) - now) }
end
wait = sends_wait(recipients, { mac }, task['mac.owner'], limits, now)
if wait then
  happened.limited('recipient', now)
  return { 'send_limit', int(wait) }
end
check_sends(sends)
check_indexes(pending, recipients)

local ends = tonumber(task[method .. '.until']) or 0
if keep and task[method .. '.nonce'] and ends - now >= 60000 then
  code.nonce, code.digest, code.ends = task[method .. '.nonce'], task[method .. '.digest'], ends
  code.issued = task[method .. '.issued']
  local counted = is_posted(sends, method) and task[method .. '.posted'] == code.nonce
  code.out = tonumber(task[method .. '.out']) + (counted and 0 or 1)
end
revive(key, pending, id, task)
issue(sends, task, method, code, limits, now)
count_sends(recipients, { mac }, limits, now)
return answer('ok', key, now)
