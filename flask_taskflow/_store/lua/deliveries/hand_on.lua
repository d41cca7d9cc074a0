-- Let another process be woken instead of one that takes nothing more, and stands in line no more.
-- Needs: waiting
-- KEYS: waiting
-- ARGV: what waiting.lua calls that process
-- Returns: ok

local who = ARGV[1]
redis.call('ZREM', KEYS[1], who)
wake(KEYS[1], served_by(who), true)
return { 'ok' }
