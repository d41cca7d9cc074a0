-- Report success: the delivery is done. Holds also after the lease or the timeout passed, while
-- nobody has claimed the delivery again.
-- KEYS: ready, delay, lease, dead, meta, body, error of the callback
-- ARGV: id, token
-- Returns: ok | gone (there is no such delivery) | stale

local id, token = take(), take_number()
local keys = keys_of(0)
local meta = read_meta(keys.meta, id)
if not meta then return { 'gone' } end
if meta.token ~= token then return { 'stale' } end

remove(keys, meta.member)
return { 'ok' }
