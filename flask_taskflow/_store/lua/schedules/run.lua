-- Let a schedule run once besides its ticks, and note which run that was.
-- Needs: base, deliveries, enqueue
-- KEYS: seq, schedules, then ready, delay, lease, dead, meta, body, error of the schedule
-- ARGV: id, body, name of the schedule
-- Returns: ok

check_number(KEYS[1])
free(KEYS[2], {})
local now, id, body, name = now_ms(), take(), take(), take()
redis.call('HSET', KEYS[2], name .. ':hand', id)
enqueue(KEYS[1], key_sets(3)[1], id, 0, body, now)
return { 'ok' }
