-- Shared by the steps on tasks.
-- A task's hash has lower-case fields (fixed, ends, seal, status, created, expires, ...; holder, if it has one;
-- gated, if it keeps a request; begun, when that began to run; asked and named, if its app gave it a key: a MAC of
-- what it was added with, and the names under which that key finds it;
-- verified, method and proof once it is verified: the digest of the code that ended it, and the MACs over
-- it; rejected, the time, and proof once its code rejected it), `address.<field>` and `mac.<field>` for each address, `seal.recipient`, and `<METHOD>.<what>` for each
-- allowed method:
--   field   recipient field it sends to, or empty    sends  messages so far
--   checks  there if a device makes the codes        wrong  attempts that count for its recipient
--   next    ms when a resend is allowed              nonce  what the code was derived from
--   digest  HMAC of the code                         until  ms when the code ends
--   issued  proves who issued it
--   out     sends of this code not known to have failed; the code is in force while it is positive
-- Needs: base

-- The reply that shows a task.
local function answer(word, key, now) return { word, int(now), redis.call('HGETALL', key) } end

-- How a task stands, in the order that `repeated` and `strange` take it, and more of its fields.
local function look(key, ...)
  return redis.call('HMGET', key, 'status', 'expires', 'verified', 'proof', 'holder', ...)
end

-- The reply to the code that ended its task, if it comes again within a minute, or nil: a form was submitted
-- twice, or the answer was lost. A digest is that of a code by one method. It costs all tries the same.
local function repeated(key, got, digests, now)
  local right = false
  local typed = string.match(got[4] or '', '^%S*')
  for _, digest in ipairs(digests) do right = right or digest == typed end
  local at = got[3]
  if right and got[1] == 'REJECTED' then at = redis.call('HGET', key, 'rejected') end
  local soon = now - (tonumber(at) or 0) < 60000
  if right and soon and (got[1] == 'SUCCESS' or got[1] == 'REJECTED') then return answer('again', key, now) end
end

-- The word that forbids a step on a task which is not pending, or nil.
local function ended(status, expires, now)
  if not status then return { 'unknown' } end
  if status ~= 'PENDING' then return { 'finished', status } end
  if now >= tonumber(expires) then return { 'expired' } end
end

-- The word that forbids a step on a task that can end no more, or nil. One that failed may be sent codes again in its
-- life.
local function closed_for_good(status, expires, now)
  local failed = status == 'FAILED' and now < tonumber(expires)
  return ended(failed and 'PENDING' or status, expires, now)
end

-- The macs of the address in a recipient's field and of the task's owner, false where there is none.
local function counted_for(key, field)
  return unpack(redis.call('HMGET', key, 'mac.' .. (field or ''), 'mac.owner'))
end
