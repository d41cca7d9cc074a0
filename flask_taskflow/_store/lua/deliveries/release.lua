-- Give a claimed delivery back that was not started, at once or in a while; nothing is counted.
-- Needs: base, deliveries, ends
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: see ends.lua
-- Returns: ok | stale

return { release(key_sets(1)[1], take_end(), now_ms()) }
