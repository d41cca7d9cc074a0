-- Shared by the steps that issue codes: the limits of sending, of a task and of a recipient.
-- Needs: base, recipients

local function take_limits()
  return {
    otp_ttl = take_number(), max_sends = take_number(), recipient_sends = take_number(),
    recipient_window = take_number(), recipient_failures = take_number(), failure_window = take_number(),
    cooldown = take_number(), cooldown_max = take_number(),
  }
end

-- An empty mac has no limit. One that begins with `~` is of a device that makes its codes: no message.
local function is_message(mac) return string.sub(mac, 1, 1) ~= '~' end

-- How many of these are messages.
local function count_messages(macs)
  local count = 0
  for _, mac in ipairs(macs) do count = count + (is_message(mac) and 1 or 0) end
  return count
end

-- How long (ms) messages to these recipients, for a task of an owner or of none, are forbidden, or nil.
local function sends_wait(recipients, macs, owner, limits, now)
  local counts = {}
  for _, mac in ipairs(macs) do
    counts[mac] = (counts[mac] or 0) + 1
    local budget = read_budget(recipients, mac, owner, now)
    local wait = blocked_for(budget, limits.recipient_failures, limits.failure_window, now)
    for _, entry in ipairs(is_message(mac) and read_names(recipients.sends, mac, now) or {}) do
      if entry.number + counts[mac] > limits.recipient_sends then
        wait = math.max(wait or 1, entry.ends - now)
      end
    end
    if wait then return wait end
  end
end

local function count_sends(recipients, macs, limits, now)
  for _, mac in ipairs(macs) do
    local entries = is_message(mac) and read_names(recipients.sends, mac, now) or {}
    for _, entry in ipairs(entries) do
      if entry.number == 0 then entry.ends = now + limits.recipient_window end
      entry.number = entry.number + 1
    end
    write_names(recipients.sends, entries)
  end
end

-- The fields of a method after one more message, with the code it carries.
local function sent_fields(method, sends, code, limits, now)
  local wait = math.min(limits.cooldown_max, limits.cooldown * 2 ^ (sends - 1))
  return {
    method .. '.sends', int(sends), method .. '.next', int(now + wait),
    method .. '.nonce', code.nonce, method .. '.digest', code.digest,
    method .. '.issued', code.issued, method .. '.until', int(code.ends), method .. '.out', int(code.out),
  }
end
