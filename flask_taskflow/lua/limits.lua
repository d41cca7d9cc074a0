-- Shared by the steps that count sends and failures: limits of a task and of a recipient.
-- `recipients` holds, under an HMAC of the address, `<sends> <their end> <failures> <their end>`.

local function take_limits()
  return {
    otp_ttl = take_number(), max_sends = take_number(), recipient_sends = take_number(),
    recipient_window = take_number(), recipient_failures = take_number(),
    cooldown = take_number(), cooldown_max = take_number(),
  }
end

local function read_recipient(recipients, mac, now)
  local raw = redis.call('HGET', recipients, mac) or ''
  local sends, sends_end, failures, failures_end = string.match(raw, '^(%d+) (%d+) (%d+) (%d+)$')
  local entry = {
    sends = tonumber(sends) or 0, sends_end = tonumber(sends_end) or 0,
    failures = tonumber(failures) or 0, failures_end = tonumber(failures_end) or 0,
  }
  if now >= entry.sends_end then entry.sends, entry.sends_end = 0, 0 end
  if now >= entry.failures_end then entry.failures, entry.failures_end = 0, 0 end
  return entry
end

local function write_recipient(recipients, expiry, mac, entry)
  local forget = math.max(entry.sends_end, entry.failures_end)
  if forget == 0 then
    redis.call('HDEL', recipients, mac)
    redis.call('ZREM', expiry, mac)
    return
  end
  redis.call('HSET', recipients, mac, string.format('%.0f %.0f %.0f %.0f', entry.sends,
    entry.sends_end, entry.failures, entry.failures_end))
  redis.call('ZADD', expiry, int(forget), mac)
  expire_with_last(expiry, recipients)
end

-- How long (ms) messages to these recipients are forbidden, or nil. An empty mac has no limit.
local function sends_wait(recipients, macs, limits, now)
  local counts = {}
  for _, mac in ipairs(macs) do
    counts[mac] = (counts[mac] or 0) + 1
    local entry = read_recipient(recipients, mac, now)
    if mac ~= '' and entry.failures >= limits.recipient_failures then
      return entry.failures_end - now
    end
    if mac ~= '' and entry.sends + counts[mac] > limits.recipient_sends then
      return math.max(entry.sends_end - now, 1)
    end
  end
end

local function count_sends(recipients, expiry, macs, limits, now)
  for _, mac in ipairs(macs) do
    if mac ~= '' then
      local entry = read_recipient(recipients, mac, now)
      if entry.sends == 0 then entry.sends_end = now + limits.recipient_window end
      entry.sends = entry.sends + 1
      write_recipient(recipients, expiry, mac, entry)
    end
  end
end

-- The fields of a method after one more message, with the code it carries.
local function sent_fields(method, sends, code, limits, now)
  local wait = math.min(limits.cooldown_max, limits.cooldown * 2 ^ (sends - 1))
  return {
    method .. '.sends', int(sends), method .. '.next', int(now + wait),
    method .. '.nonce', code.nonce, method .. '.digest', code.digest,
    method .. '.until', int(code.ends), method .. '.out', int(code.out),
  }
end
