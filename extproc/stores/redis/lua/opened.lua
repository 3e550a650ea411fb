#!lua flags=allow-oom
-- Finds the reservations whose body names a replica; one that has ended has no body.
-- Writes nothing, but without the flag `no-writes`: it may not run on a server that became a replica of another.
--
-- KEYS[1]    the partition's epoch
-- KEYS[2..]  reservations (hashes: outcome, output, body, ...)
-- ARGV[1]    the epoch's id
-- ARGV[2]    the replica's name, as it stands in a body of JSON
-- ARGV[3]    as it stands in a packed one
--
-- Returns {body, output, body, output, ...}. A body that has the name somewhere else is among them.

local refused = refusal(KEYS[1], ARGV[1], false)
if refused then return refused end
local found = {}
for i = 2, #KEYS do
  local known = redis.call('HMGET', KEYS[i], 'body', 'output')
  if known[1] and (string.find(known[1], ARGV[2], 1, true) or string.find(known[1], ARGV[3], 1, true)) then
    found[#found + 1] = known[1]
    found[#found + 1] = known[2] or ''
  end
end
return found
