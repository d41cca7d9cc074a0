-- Shared by the step that stores tasks: reminders that a task is about to end. Those of a task are one delivery under
-- `%reminders`, whose id is the task's. It is due when the first one is, and its body says when the task ends.
-- Needs: base, bells, courses, deliveries, enqueue, soundness

-- Where no process listens to reminders they are forgotten: with their tasks, a few at a time, and after the last one.
local forgotten_at_once, kept = 10, 62 * 86400000

local function reminders()
  local keys = {}
  for _, kind in ipairs({ 'ready', 'delay', 'lease', 'dead', 'meta', 'body', 'error' }) do
    keys[kind] = queue_keys .. 'h:%reminders:' .. kind
  end
  return keys
end

-- Let an app be reminded of a task. What something else has spoiled holds up no task.
local function remind(channel, id, priority, due, ends, now)
  local keys = reminders()
  if not is_sound(keys) then return end
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', keys.delay, '-inf', int(now), 'LIMIT', 0, forgotten_at_once)) do
    local over = tonumber(redis.call('HGET', keys.body, id_of(member)) or 0)
    if not over or over < now then remove(keys, member) end
  end
  pcall(enqueue, queue_keys .. 'seq', keys, id, priority, int(ends), now, due)
  for _, kind in ipairs({ 'delay', 'meta', 'body' }) do redis.call('PEXPIRE', keys[kind], kept) end
  ring(channel, id, '%reminders')
end
