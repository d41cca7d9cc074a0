-- Say how a process defines its schedules; hear how they stand. Of several definitions the one counts that was said
-- first at the latest time: what a release that is being replaced goes on to say is older.
-- `<name>:said` is a row of `<digest> <first said ms> <last said ms>`.
-- Needs: base
-- KEYS: schedules
-- ARGV: for how long a definition counts that nobody says, ms; list of (name, digest)
-- Returns: ok, now, then for each: its state or empty, the digest that counts, 1 if it is paused

local schedules, now, life, rows, reply = KEYS[1], now_ms(), take_number(), take_list(), {}
free(schedules, {})
for i = 1, #rows, 2 do
  local name, own = rows[i], rows[i + 1]
  local firsts, newest = { [own] = now }, own
  local said = redis.call('HGET', schedules, name .. ':said') or ''
  local parts = {}
  for digest, first, last in string.gmatch(said, '(%x+) (%d+) (%d+)') do
    if digest == own then
      firsts[own] = tonumber(first)
    elseif now - last < life then
      firsts[digest] = tonumber(first)
      append(parts, { digest .. ' ' .. first .. ' ' .. last })
    end
  end
  append(parts, { own .. ' ' .. int(firsts[own]) .. ' ' .. int(now) })
  for digest, first in pairs(firsts) do
    local later = first > firsts[newest] or (first == firsts[newest] and digest > newest)
    if later then newest = digest end
  end
  redis.call('HSET', schedules, name .. ':said', table.concat(parts, ' '))
  local paused = redis.call('HEXISTS', schedules, name .. ':paused')
  append(reply, { redis.call('HGET', schedules, name) or '', newest, paused })
end
return { 'ok', int(now), unpack(reply) }
