-- Report the last failed attempt: the delivery is a dead letter.
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: id, token, error
-- Returns: ok | stale

return fail_into('dead', now_ms())
