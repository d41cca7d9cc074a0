-- Shared by the steps that pause queues. `paused` has a field for each layer that holds the queue: since when, ms,
-- and until when, if it ends by itself. The queue is paused as long as the key is there.
-- Needs: base

local without_end = 4102444800000

-- Forget the layers that are over, and let the key last as long as the last one.
local function keep_holds(paused, now)
  local last, layers = 0, redis.call('HGETALL', paused)
  for i = 1, #layers, 2 do
    local ends = tonumber(string.match(layers[i + 1], ' (%d+)$')) or without_end
    if ends > now then last = math.max(last, ends) else redis.call('HDEL', paused, layers[i]) end
  end
  if last > 0 then redis.call('PEXPIREAT', paused, int(last)) end
end
