-- Let a layer hold a queue no more.
-- Needs: base, holds
-- KEYS: paused
-- ARGV: layer
-- Returns: ok

redis.call('HDEL', KEYS[1], take())
keep_holds(KEYS[1], now_ms())
return { 'ok' }
