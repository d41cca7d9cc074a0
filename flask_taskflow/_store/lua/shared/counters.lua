-- Shared by the steps that count what happens, a queue's in one hash. The last two keys of such a step are
-- `counters` and `history`; `Steps` brings them.
-- A counter's name is its kind and its labels: `tasks added`, `codes EMAIL posted`, `rejected EMAIL wrong_code`,
-- `limits cooldown`, `run pay done`, and `verify EMAIL`, `wait pay`, `took pay` for histograms, each followed by
-- a bound in seconds, `inf` or `sum` (ms). `@minute` is the minute of the last count.
-- `history` has, for each hour of 27 and each day of 36, a field with what its minutes or hours had: `m<slot>` or
-- `h<slot>` -> the hour or day, then an array (minute of the hour or hour of the day, its sums); and `minute`,
-- `hour` -> the sums at the last one's end.
-- Needs: base

local counters_key, history_key = KEYS[#KEYS - 1], KEYS[#KEYS]
KEYS[#KEYS], KEYS[#KEYS - 1] = nil, nil
local to_bytes = cmsgpack.pack

-- The values that a field holds, one after the other; none if somebody else wrote it.
local function values_of(fine, ...) return fine and { ... } or {} end
local function from_bytes(raw) return values_of(pcall(cmsgpack.unpack, raw or '')) end

-- A count as it is stored.
local function count_of(value) return math.max(0, math.min(tonumber(value) or 0, 1e15)) end

-- As long as the history goes back, after the last count.
local kept_ms = 36 * 86400000
-- The series that graphs are drawn of, by the counters' names. Tables that most steps do not need are made where
-- they are.
local function series()
  return { '^tasks added', '^tasks verified', '^tasks locked', '^tasks expired', '^codes .* posted', '^rejected ',
    '^run [^%%].* done', '^run .* dead', '^tasks failed' }
end

local function sums_now()
  local all, names, now = redis.call('HGETALL', counters_key), series(), {}
  for place in ipairs(names) do now[place] = 0 end
  for i = 1, #all, 2 do
    for place, name in ipairs(names) do
      if string.find(all[i], name) then now[place] = now[place] + count_of(all[i + 1]) end
    end
  end
  return now
end

-- What was added since the series that a field holds.
local function since(field, now)
  local before, delta = from_bytes(redis.call('HGET', history_key, field))[1], {}
  if type(before) ~= 'table' then before = {} end
  for place, sum in ipairs(now) do delta[place] = sum - count_of(before[place]) end
  return delta
end

-- Note what a minute of an hour, or an hour of a day, had.
local function note(kind, field, block, slot, most, now)
  local entry, name = since(field, now), kind .. int(block % most)
  table.insert(entry, 1, slot)
  local held = redis.call('HGET', history_key, name)
  if from_bytes(held)[1] ~= block then held = to_bytes(block) end
  redis.call('HSET', history_key, name, held .. to_bytes(entry), field, to_bytes(now))
end

local function roll(before, minute)
  local hour, now = math.floor(before / 60), sums_now()
  note('m', 'minute', hour, before % 60, 27, now)
  if math.floor(minute / 60) ~= hour then note('h', 'hour', math.floor(hour / 24), hour % 24, 36, now) end
end

-- Begin a minute.
local function turn(before, minute)
  if before then roll(before, minute) end
  redis.call('HSET', counters_key, '@minute', int(minute))
  for _, key in ipairs({ counters_key, history_key }) do redis.call('PEXPIRE', key, kept_ms) end
end

local function tally_all(now, counts)
  local names, minute = {}, math.floor(now / 60000)
  for i = 1, #counts, 2 do names[#names + 1] = counts[i] end
  local had = redis.call('HMGET', counters_key, '@minute', unpack(names))
  if tonumber(had[1]) ~= minute then turn(tonumber(had[1]), minute) end
  for i in ipairs(names) do counts[2 * i] = int(count_of(had[i + 1]) + counts[2 * i]) end
  redis.call('HSET', counters_key, unpack(counts))
end

-- Count: a list of names, each once, and by how much. What cannot be counted, as where memory is full, fails no step.
local function tally(now, counts) pcall(tally_all, now, counts) end

-- Names that count a time, ms, in a histogram.
local function histogram(kind, label, took)
  local bounds = kind == 'verify' and { 5, 10, 30, 60, 120, 300, 600, 1800, 3600 }
    or { 0.01, 0.1, 1, 5, 30, 60, 300, 3600 }
  local bound = 'inf'
  for i = #bounds, 1, -1 do
    if took <= bounds[i] * 1000 then bound = tostring(bounds[i]) end
  end
  local name = kind .. ' ' .. label .. ' '
  return { name .. bound, 1, name .. 'sum', math.max(took, 0) }
end

-- The callback, or `@` and the method, whose deliveries a key holds.
local function name_of(key) return string.match(key, ':h:(.*):%l+$') or '-' end
