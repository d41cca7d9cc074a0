-- List the tasks of an owner or an address in a queue.
-- Needs: listings
-- KEYS: the indexes
-- Returns: ok, list of ids

return { 'ok', listed(KEYS) }
