-- Give a verified task, that no callback was registered for, to the callbacks that are registered now.
-- Needs: base, enqueue, loaded, packing
-- KEYS: task, unclaimed, seq, then ready, delay, meta, body of each callback
-- ARGV: id, list of the callbacks
-- Returns: gone (another process did, or the task is forgotten) | ok

local task, unclaimed, seq, id = KEYS[1], KEYS[2], KEYS[3], take()
check_number(seq)
-- First: what is taken out could not be put where something else has a key.
for i = 4, #KEYS, 4 do
  for k, command in ipairs({ 'ZCARD', 'ZCARD', 'HLEN', 'HLEN' }) do redis.call(command, KEYS[i + k - 1]) end
end
if redis.call('ZREM', unclaimed, id) == 0 then return { 'gone' } end
if redis.call('HGET', task, 'status') ~= 'SUCCESS' then return { 'gone' } end

local now = now_ms()
redis.call('HSET', task, unpack(after_of(take_list(), now)))
local found = load(task)
local body, due = pack_task(fields_of(found)), tonumber(found.run_at) or now
for i = 4, #KEYS, 4 do
  local keys = { ready = KEYS[i], delay = KEYS[i + 1], meta = KEYS[i + 2], body = KEYS[i + 3] }
  enqueue(seq, keys, id, found.priority, body, now, due)
end
return { 'ok' }
