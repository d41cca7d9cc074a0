-- Shared by steps that end a task as verified: one that no callback is registered for stands in `unclaimed`, score when
-- it was verified.
-- Needs: base

-- So many of a queue wait at most for a callback to register; then the oldest are forgotten.
local unclaimed_most = 10000

local function keep_unclaimed(key, id, retention, now)
  redis.call('ZADD', key, int(now), id)
  local excess = redis.call('ZCARD', key) - unclaimed_most
  local gone = redis.call('ZRANGEBYSCORE', key, '-inf', int(now - retention), 'LIMIT', 0, 10)
  if excess > 0 then append(gone, redis.call('ZRANGE', key, 0, excess - 1)) end
  for _, old in ipairs(gone) do redis.call('ZREM', key, old) end
  redis.call('PEXPIRE', key, int(retention))
end
