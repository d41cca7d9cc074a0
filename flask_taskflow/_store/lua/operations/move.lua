-- Give deliveries of one callback to another: what waits, what is dead, or what a vanished process had. What the other
-- one has of the same task, or is done with, stays.
-- Needs: base, counters, deliveries, enqueue, runs
-- KEYS: seq, then ready, delay, lease, dead, meta, body, error of the one and of the other
-- ARGV: ready, delay, lease or dead, how many stay there that were seen before
-- Returns: ok, how many were moved, how many more stay, 1 if there may be others

local most = 500
local seq, sets, now, count = KEYS[1], key_sets(2), now_ms(), 0
local old, new, place, skip = sets[1], sets[2], take(), take_number()
check_number(seq)

local function move(member, score)
  local id = id_of(member)
  local meta, body = read_meta(old.meta, id), redis.call('HGET', old.body, id)
  local due = place == 'delay' and tonumber(score) or nil
  if meta and body and redis.call('HEXISTS', new.meta, id) == 0 and not is_done(id, name_of(new.meta)) then
    if place == 'dead' then
      write_meta(new.meta, id, meta)
      redis.call('HSET', new.body, id, body)
      redis.call('HSET', new.error, id, redis.call('HGET', old.error, id) or '')
      redis.call('ZADD', new.dead, score, member)
    else
      enqueue(seq, new, id, meta.priority, body, now, due)
    end
    remove(old, member)
    ran.moved(old, new, id, place == 'dead', now, due)
    count = count + 1
  end
end

-- What is leased is a vanished process's once its time is over.
local last = place == 'lease' and int(now) or '+inf'
local seen = redis.call('ZRANGEBYSCORE', old[place], '-inf', last, 'WITHSCORES', 'LIMIT', skip, most)
for i = 1, #seen, 2 do move(seen[i], seen[i + 1]) end
return { 'ok', count, #seen / 2 - count, #seen / 2 == most and 1 or 0 }
