-- Say which callbacks of some queues this process has, and which names they replace; look whether anything of
-- these queues is over.
-- Needs: base, handlers, soundness
-- KEYS: for each queue: handlers, unclaimed, pending, recipients:expiry, budgets:expiry, then dead of what is no callback
-- ARGV: how long dead letters are kept, ms; number of queues; then for each: number of its keys of dead letters,
--       list of callbacks, list of (old name, new name), list of (what follows other ends, its statuses)
-- Returns: ok, then for each queue: list of the current names, list of (old name, new name), list of the ids of
--          verified tasks that no callback was registered for, at most 100, 1 if there is something to trim

local now, retention, k, reply = now_ms(), take_number(), 1, { 'ok' }

-- Whether something is over, or spoiled, which trimming tells of.
local function is_over(key, until_)
  return not fits(key, 'ZCARD') or #redis.call('ZRANGEBYSCORE', key, '-inf', int(until_), 'LIMIT', 0, 1) > 0
end

free(KEYS[1], {})
for _ = 1, take_number() do
  local last, own, aliases, endings = k + 4 + take_number(), take_list(), take_list(), take_list()
  if #own > 0 then register(KEYS[k], own, aliases, now) end
  for i = 1, #endings, 2 do redis.call('HSET', KEYS[k], endings[i], int(now) .. ' ' .. endings[i + 1]) end
  local names, renames = registered(KEYS[k])
  local waiting = #own > 0 and redis.call('ZRANGE', KEYS[k + 1], 0, 99) or {}
  local over = is_over(KEYS[k + 2], now) or is_over(KEYS[k + 3], now) or is_over(KEYS[k + 4], now)
  for i = k + 5, last do over = over or is_over(KEYS[i], now - retention) end
  -- Also of what no release has any more.
  local prefix = string.sub(KEYS[k], 1, -#'handlers' - 1)
  for _, name in ipairs(names_kept(KEYS[k])) do
    over = over or is_over(prefix .. 'h:' .. name .. ':dead', now - retention)
  end
  append(reply, { current(names, renames), in_pairs(renames), waiting, over and 1 or 0 })
  k = last + 1
end
return reply
