-- Shared by the steps of those who have secret keys. A MAC begins with the fingerprint of the key that made
-- it; a caller says which keys it has by a list of fingerprints.

-- The fields of a task that hold seals.
local seals = { 'seal', 'seal.recipient' }

-- The seals of a loaded task.
local function seals_of(task)
  local macs = {}
  for i, name in ipairs(seals) do macs[i] = task[name] or false end
  return macs
end

-- Which keys made these MACs.
local function fingerprints_of(macs)
  local own = {}
  for i, mac in ipairs(macs) do own[i] = string.sub(mac, 1, 5) end
  return own
end

-- The reply if a key made one of these MACs that is none of the caller's, or nil. What is no MAC at all is
-- the caller's to judge.
local function lacks_key(own, macs)
  for _, mac in ipairs(macs) do
    local fingerprint, known = mac and string.sub(mac, 1, 5), not mac
    for _, name in ipairs(own) do known = known or name == fingerprint end
    if not known and #mac == 28 and string.match(mac, '^%w%w%w%w%w%.') then
      return { 'key_missing', fingerprint }
    end
  end
end

-- The reply if a task has a holder and who asks did not bring its secret, or nil. Who lacks the key of its seal
-- cannot know.
local function not_held(own, holder, held, seal)
  if holder and held ~= '1' then return lacks_key(own, { seal }) or { 'not_holder' } end
end
