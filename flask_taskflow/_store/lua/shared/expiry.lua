-- Shared by the steps that store what is over by itself.
-- Needs: base

-- Keep a key just as long as its last member, whose score is when to forget it, or longer.
local function expire_with_last(index, other, longer)
  local last = redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')
  if last[2] then
    redis.call('PEXPIREAT', index, int(last[2] + (longer or 0)))
    if other then redis.call('PEXPIREAT', other, int(tonumber(last[2]))) end
  end
end

-- Keep the index of pending tasks: an hour longer, for what expired is counted when it is taken out.
local function keep_pending(pending) expire_with_last(pending, nil, 3600000) end
