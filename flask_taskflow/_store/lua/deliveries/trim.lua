-- Forget what is over: expired tasks, recipients, old dead letters; at most 1,000 of each. Dead letters also of what
-- no release has any more.
-- Needs: base, courses, deliveries, handlers, listeners, recipients, soundness, trimming
-- KEYS: pending, the four of recipients.lua, then ready, delay, lease, dead, meta, body, error of some callbacks
-- ARGV: how long dead letters are kept, ms
-- Returns: ok, 1 if there may be more, dead letters forgotten

local pending, recipients = KEYS[1], counts_at(2)
local now, retention = now_ms(), take_number()
local more, forgotten, sets = trim(pending, recipients, now), 0, key_sets(6)
for _, name in ipairs(names_kept(queue_keys .. 'handlers')) do append(sets, { keys_of(name) }) end
for _, keys in ipairs((sound_ones(sets))) do
  local old = redis.call('ZRANGEBYSCORE', keys.dead, '-inf', int(now - retention), 'LIMIT', 0, 1000)
  for _, member in ipairs(old) do remove(keys, member) end
  more, forgotten = more or #old == 1000, forgotten + #old
end
return { 'ok', more and 1 or 0, forgotten }
