-- Lets an open reservation live longer and hold more; never less. Admits nothing: it was admitted.
--
-- KEYS[1]    the reservation (hash: outcome, output, body, and what each bucket holds: 1, 2, ...)
-- KEYS[2]    the tenant's open reservations (sorted set: id by deadline)
-- KEYS[3..]  the buckets (hashes: used, held, alerted)
-- ARGV[1]    reservation id
-- ARGV[2]    deadline, seconds since the epoch
-- ARGV[3]    the reservation's body, for whoever has to expire it
-- ARGV[4]    seconds to keep the reservation at the most
-- ARGV[5..]  for each bucket: what it has to hold; when it may be forgotten (seconds since the epoch)
--
-- Returns 1, or 0 where the reservation is not open (any more), or was renewed for longer already: what arrives
-- late takes nothing back. Repeating it changes nothing.

if redis.call('HGET', KEYS[1], 'outcome') ~= 'open' then return 0 end
local deadline = redis.call('ZSCORE', KEYS[2], ARGV[1])
if deadline and tonumber(deadline) > tonumber(ARGV[2]) then return 0 end

for i = 1, #KEYS - 2 do
  local key = KEYS[i + 2]
  local mine = tonumber(redis.call('HGET', KEYS[1], i) or 0)
  local more = tonumber(ARGV[3 + i * 2]) - mine
  local there = redis.call('EXISTS', key) == 1
  -- A bucket that this holds something in, and that is gone: its window is long over, it must not come back.
  if more > 0 and (there or mine == 0) then
    redis.call('HINCRBY', key, 'held', more)
    if not there then redis.call('EXPIREAT', key, ARGV[4 + i * 2]) end
    redis.call('HINCRBY', KEYS[1], i, more)
  end
end
redis.call('HSET', KEYS[1], 'body', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
return 1
