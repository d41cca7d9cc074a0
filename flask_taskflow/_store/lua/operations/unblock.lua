-- Lift the limits of an address or an owner.
-- Needs: base
-- KEYS: a key with counts, its expiry
-- ARGV: list of the names of who is counted
-- Returns: ok, how many of them had a count

local names = take_list()
redis.call('ZREM', KEYS[2], unpack(names))
return { 'ok', redis.call('HDEL', KEYS[1], unpack(names)) }
