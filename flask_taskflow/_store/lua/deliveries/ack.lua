-- Report success: the delivery is done.
-- Needs: base, deliveries, ends
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: see ends.lua
-- Returns: ok | gone (there is no such delivery) | stale

return { ack(key_sets(1)[1], take_end(), now_ms()) }
