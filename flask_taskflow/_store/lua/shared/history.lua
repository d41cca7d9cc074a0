-- Shared by the steps that tell what a queue had, by the minute, the hour or the day.
-- Needs: base, counters

-- Of the last moments, each so many minutes or hours long (ms), those that had something: when each began (ms),
-- and its sums.
local function moments(now, length, count)
  local hours = length >= 3600000
  local kind, field, most = hours and 'h' or 'm', hours and 'hour' or 'minute', hours and 36 or 27
  local unit, size = hours and 3600000 or 60000, hours and 24 or 60
  local from, had, row, width = (math.floor(now / length) - count + 1) * length, {}, { at = -1 }, #series()

  local function add(at, counts, skipped)
    at = math.floor(at / length) * length
    if at < from then return end
    if at ~= row.at then
      row = { at = at }
      for place = 1, width do row[place] = 0 end
      had[#had + 1] = row
    end
    for place = 1, width do
      local count = counts[skipped + place]
      if count ~= 0 then row[place] = row[place] + count_of(count) end
    end
  end

  local newest = math.floor(now / unit / size)
  for block = math.max(math.floor(from / unit / size), newest - most + 1), newest do
    local entries = from_bytes(redis.call('HGET', history_key, kind .. int(block % most)))
    for i = 2, entries[1] == block and #entries or 0 do
      local entry = type(entries[i]) == 'table' and entries[i] or {}
      add((block * size + count_of(entry[1])) * unit, entry, 1)
    end
  end
  -- What was not noted yet belongs to the minute, or hour, of the last count.
  local last = tonumber(redis.call('HGET', counters_key, '@minute'))
  if last then add(math.floor(last * 60000 / unit) * unit, since(field, sums_now()), 0) end
  local reply = {}
  for _, moment in ipairs(had) do
    append(reply, { int(moment.at) })
    append(reply, moment)
  end
  return reply
end
