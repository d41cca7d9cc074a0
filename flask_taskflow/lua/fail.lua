-- Report a failed attempt: the delivery is due again later.
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: delay ms, id, token, error
-- Returns: ok | stale

return fail_into('delay', now_ms() + take_number())
