-- End a task whose reserved attempt was right, and store one delivery per callback.
-- Needs: base, recipients, success, tasks
-- KEYS: see success.lua
-- ARGV: see success.lua, then list of the code's digests (one per secret key), proof
-- Returns: unknown | finished, status | expired | ok, now, fields, number of deliveries |
--          again (it was ended by this code just now), now, fields |
--          resubscribe, list of registered callbacks, list of (old name, new name)

local now, keys, given, digests = now_ms(), success_keys(), take_success(), take_list()
local proof = take()
local got = look(keys.task, given.method .. '.field')
local over = repeated(keys.task, got, digests, now) or ended(got[1], got[2], now)
if over then return over end
local mac, owner = counted_for(keys.task, got[6])
return succeed(keys, given, mac, read_budget(keys.recipients, mac, owner, now), proof, now)
