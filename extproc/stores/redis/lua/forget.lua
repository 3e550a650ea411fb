#!lua flags=allow-oom
-- A reservation had ended before, as the ledger says: gives back what it holds, and charges nothing.
--
-- KEYS[1]    the partition's epoch
-- KEYS[2]    the reservation (hash: outcome, output, body, and what each bucket holds: 1, 2, ...)
-- KEYS[3]    the open reservations (sorted set: id by deadline)
-- KEYS[4]    the entries that wait for the ledger (stream); not used
-- KEYS[5..]  the buckets (hashes: used, held, alerted)
-- ARGV[1]    the epoch's id
-- ARGV[2]    reservation id
-- ARGV[3]    how it ended
-- ARGV[4]    seconds to remember that
--
-- Returns 1, or 0 where it is not open.

local refused = refusal(KEYS[1], ARGV[1], false)
if refused then return refused end
local wanted = {KEYS[2], 'outcome'}
for i = 1, #KEYS - 4 do wanted[#wanted + 1] = i end
local known = redis.call('HMGET', unpack(wanted))
if known[1] ~= 'open' then return 0 end
for i = 1, #KEYS - 4 do
  local key, mine = KEYS[i + 4], tonumber(known[i + 1] or 0)
  local count = redis.call('HMGET', key, 'used', 'held')
  if count[1] or count[2] then
    local held = tonumber(count[2] or 0)
    held = held - math.min(held, mine)
    if tonumber(count[1] or 0) > 0 or held > 0 then
      redis.call('HSET', key, 'held', held)
    else
      redis.call('DEL', key)
    end
  end
end
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'outcome', ARGV[3], 'crossed', '')
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
