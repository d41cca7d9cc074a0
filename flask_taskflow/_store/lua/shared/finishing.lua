-- Shared by the steps that end tasks.
-- Needs: base, happenings, listeners, loaded

-- End a loaded task: its codes go first, then the status, with more fields; kept for `retention` ms. One that failed may
-- be sent codes again in its life: it is kept for that, with what is known of its methods. Answers the fields it has then.
local function finish(task, key, pending, id, status, retention, now, more)
  local codes, sets = {}, status == 'SUCCESS' and {} or listeners(status)
  for name in pairs(task) do
    local what = string.match(name, '^%u.*%.(%l.*)$')
    local kept = status == 'FAILED' and (what == 'field' or what == 'sends' or what == 'failed')
    if what and not kept then
      codes[#codes + 1] = name
      task[name] = nil
    end
  end
  free(key, codes)
  local changed = { 'status', status, unpack(more or {}) }
  redis.call('HSET', key, unpack(changed))
  for i = 1, #changed, 2 do task[changed[i]] = changed[i + 1] end
  if status == 'FAILED' then retention = retention + math.max(task.expires - now, 0) end
  redis.call('PEXPIRE', key, int(retention))
  redis.call('ZREM', pending, id)
  -- What verified it is told by the step that knows.
  if status ~= 'SUCCESS' then happened.finished(id, status, retention, now) end
  local fields = fields_of(task)
  follow(sets, fields, id, task.priority, now)
  return fields
end
