-- Hold a queue by a layer, until it is released or for some time.
-- Needs: base, holds
-- KEYS: paused
-- ARGV: layer, until when ms or 0
-- Returns: ok

local paused, now, layer, ends = KEYS[1], now_ms(), take(), take_number()
redis.call('HSET', paused, layer, int(now) .. (ends > 0 and ' ' .. int(ends) or ''))
keep_holds(paused, now)
return { 'ok' }
