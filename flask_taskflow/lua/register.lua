-- Say which callbacks of a queue this process has.
-- KEYS: handlers
-- ARGV: list of callbacks
-- Returns: ok, list of registered callbacks

register(KEYS[1], take_list(), now_ms())
return { 'ok', registered(KEYS[1]) }
