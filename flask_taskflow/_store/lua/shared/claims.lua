-- Shared by the steps that lease deliveries, over all callbacks of one queue that a process has.
-- Needs: base, deliveries, heads, outcomes, runs

-- A reply of one script holds at most about so many bytes of tasks.
local bytes_most = 262144
-- So many leases end in one script: each may answer a dead letter.
local lost_most = 100

-- Call a function with each member of a list; one without a readable meta is dropped. Answers how many were.
local function each(keys, members, visit)
  local dropped = 0
  for _, member in ipairs(members) do
    local id = id_of(member)
    local meta = read_meta(keys.meta, id)
    if meta and meta.member == member then
      visit(member, id, meta)
    else
      -- A stray member must not take the delivery along whose id it bears.
      remove(keys, member, meta)
      dropped = dropped + 1
    end
  end
  return dropped
end

local function row_of(keys, id, meta, token)
  local body = redis.call('HGET', keys.body, id) or ''
  return { keys.index, id, token, meta.failures, meta.lost, was_spared(meta) and 1 or 0, body }
end

-- Let wait what is due, and what was lost with its process; answers whether there is more, how many were
-- dropped, and the rows of those that are dead now.
local function move_due(sets, given, now)
  local more, dropped, rows, lost = false, 0, {}, lost_most
  for _, keys in ipairs(sets) do
    local delayed = redis.call('ZRANGEBYSCORE', keys.delay, '-inf', int(now), 'LIMIT', 0, given.moves)
    local over = given.reap and redis.call('ZRANGEBYSCORE', keys.lease, '-inf', int(now), 'LIMIT', 0, lost) or {}
    more = more or #delayed == given.moves or (given.reap and #over == lost)
    lost = lost - #over
    dropped = dropped + each(keys, delayed, function(member, _, meta)
      redis.call('ZREM', keys.delay, member)
      redis.call('ZADD', keys.ready, int(-meta.priority), member)
    end)
    dropped = dropped + each(keys, over, function(member, id, meta)
      if lose(keys, member, meta, given.limits, now) then append(rows, row_of(keys, id, meta, 0)) end
    end)
  end
  return more, dropped, rows
end

-- Lease what is next; answers the rows, how many were dropped, and the priority of what is left, if any.
-- What is leased beyond the places that are free is claimed ahead. Of that, nothing may have been lost so before:
-- it may be what ends processes. What only so many may run of is not claimed ahead: it would hold up others.
local function lease_next(sets, given, now)
  local rows, dropped, leased, bytes = {}, 0, 0, 0
  for _, head in ipairs(heads_of(sets, given.most + 1)) do
    local full = leased >= given.most or bytes > bytes_most or -head.score < given.floor
    if full then return rows, dropped, int(-head.score) end
    local keys, passed = head.keys, false
    dropped = dropped + each(keys, { head.member }, function(member, id, meta)
      local ahead = leased >= given.places
      passed = ahead and was_spared(meta)
      if passed or (keys.room and (ahead or keys.room.left < 1)) then return end
      meta.token, meta.owner = meta.token + 1, owner_of(meta, given.owner, ahead)
      redis.call('ZREM', keys.ready, member)
      redis.call('ZADD', keys.lease, int(now + given.lease), member)
      write_meta(keys.meta, id, meta)
      ran.claimed(keys, id, meta, given.owner, now)
      local row = row_of(keys, id, meta, meta.token)
      append(rows, row)
      leased, bytes = leased + 1, bytes + #row[7]
      if keys.room then keys.room.left = keys.room.left - 1 end
    end)
    if passed then return rows, dropped, int(-head.score) end
  end
  return rows, dropped, ''
end
