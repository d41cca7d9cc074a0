-- Shared by the steps that count messages to a recipient, and wrong codes. Whoever is counted has one name (an
-- HMAC of an address, or of a task's owner) for each secret key of the process that stored it, `<name>,<name>`,
-- and is counted under all of them: so processes that have a key in common see one limit.
-- There are two counts, each a table of two keys: `counts`, which holds `<number> <its end> <end of the debt>`
-- for each name, and `expiry`, which tells when to forget it. `sends` is a queue's; `budgets`, of wrong codes, is the
-- app's, but in a cluster, where a step reaches keys of one queue only, it is a queue's, too.
-- A failure counts for a window, and beyond it as a debt of three windows, which only time pays: who goes on
-- guessing has the limit once, and then one guess in three windows.
-- Needs: base, expiry

local DEBT = 3

-- The keys of both counts, as they stand from one of KEYS on: recipients, recipients:expiry, budgets, budgets:expiry.
local function counts_at(first)
  local sends, sends_expiry, budgets, budgets_expiry = unpack(KEYS, first, first + 3)
  return {
    sends = { counts = sends, expiry = sends_expiry }, budgets = { counts = budgets, expiry = budgets_expiry },
  }
end

local function read_name(count, name, now)
  local raw = redis.call('HGET', count.counts, name) or ''
  local number, ends, debt_end = string.match(raw, '^(%d+) (%d+) (%d+)$')
  local entry = {
    name = name, number = tonumber(number) or 0, ends = tonumber(ends) or 0, debt_end = tonumber(debt_end) or 0,
  }
  if now >= entry.ends then entry.number, entry.ends = 0, 0 end
  if now >= entry.debt_end then entry.debt_end = 0 end
  return entry
end

-- What is counted under each of some names.
local function read_names(count, names, now)
  local entries = {}
  for name in string.gmatch(names or '', '[^,~]+') do
    entries[#entries + 1] = read_name(count, name, now)
  end
  return entries
end

-- The wrong codes that count for an address and for an owner, if there are such.
local function read_budget(recipients, mac, owner, now)
  return read_names(recipients.budgets, (mac or '') .. ',' .. (owner or ''), now)
end

local function text_of(entry)
  return int(entry.number) .. ' ' .. int(entry.ends) .. ' ' .. int(entry.debt_end)
end

local function write_names(count, entries)
  for _, entry in ipairs(entries) do
    local forget = math.max(entry.ends, entry.debt_end)
    if forget == 0 then
      redis.call('HDEL', count.counts, entry.name)
      redis.call('ZREM', count.expiry, entry.name)
    else
      redis.call('HSET', count.counts, entry.name, text_of(entry))
      redis.call('ZADD', count.expiry, int(forget), entry.name)
      expire_with_last(count.expiry, count.counts)
    end
  end
end

local function count_failure(recipients, budget, window, now)
  for _, entry in ipairs(budget) do
    if entry.number == 0 then entry.ends = now + window end
    entry.number = entry.number + 1
    -- No debt lasts for ever, not even that of the decoy.
    entry.debt_end = math.min(math.max(entry.debt_end, now) + DEBT * window, now + 1000 * window)
  end
  write_names(recipients.budgets, budget)
end

-- How long (ms) no code may be compared and none be sent, or nil.
local function blocked_for(budget, most, window, now)
  local wait = 0
  for _, entry in ipairs(budget) do
    if entry.number >= most then wait = math.max(wait, entry.ends - now) end
    wait = math.max(wait, entry.debt_end - now - DEBT * window * most + 1)
  end
  return wait > 0 and wait or nil
end

-- Take so many back, and what was owed for them.
local function take_back_counts(count, entries, number, debt, now)
  for _, entry in ipairs(entries) do
    entry.number = math.max(entry.number - number, 0)
    entry.debt_end = entry.debt_end - debt
    if entry.number == 0 then entry.ends = 0 end
    if entry.debt_end <= now then entry.debt_end = 0 end
  end
  write_names(count, entries)
end

-- Take back what a task counted whose code was right: its messages reached whom they should, and its wrong codes
-- were the typing errors of the same person.
local function give_back(recipients, mac, sends, budget, failures, window, now)
  if sends > 0 then take_back_counts(recipients.sends, read_names(recipients.sends, mac, now), sends, 0, now) end
  if failures > 0 then take_back_counts(recipients.budgets, budget, failures, DEBT * window * failures, now) end
end

-- Redis stops a script at a key of a wrong type: meet it before the first write.
local function check_indexes(pending, recipients)
  redis.call('ZCARD', pending)
  for _, count in pairs(recipients) do
    redis.call('HLEN', count.counts)
    redis.call('ZCARD', count.expiry)
  end
end
