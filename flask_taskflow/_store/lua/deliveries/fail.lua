-- Report a failed attempt: the delivery is due again later.
-- Needs: base, deliveries, ends
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: see ends.lua
-- Returns: ok | stale

return { fail(key_sets(1)[1], take_end(), now_ms()) }
