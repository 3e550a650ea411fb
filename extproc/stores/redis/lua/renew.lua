#!lua flags=allow-oom
-- Lets an open reservation live longer and hold more; never less. Admits nothing: it was admitted.
-- Or takes one up that this epoch does not know, as it is.
--
-- KEYS[1]    the partition's epoch
-- KEYS[2]    the reservation (hash: outcome, output, body, and what each bucket holds: 1, 2, ...)
-- KEYS[3]    the open reservations (sorted set: id by deadline)
-- KEYS[4]    the entries that wait for the ledger (stream); not used
-- KEYS[5..]  the buckets (hashes: used, held, alerted)
-- ARGV[1]    the epoch's id
-- ARGV[2]    reservation id
-- ARGV[3]    deadline, seconds since the epoch
-- ARGV[4]    the reservation's body, for whoever has to expire it
-- ARGV[5]    seconds to keep the reservation at the most
-- ARGV[6]    seconds to keep the list of open ones at the least
-- ARGV[7]    the output bound that it was granted
-- ARGV[8]    1: it is taken up where it is not known
-- ARGV[9]    1: it is renewed where it is open
-- ARGV[10..] for each bucket: what it has to hold; when it may be forgotten (seconds since the epoch)
--
-- Returns 1, or 0 where nothing was to be done: it is not open (any more), or was renewed for longer already. What
-- arrives late takes nothing back. Repeating it changes nothing.

local refused = refusal(KEYS[1], ARGV[1], false)
if refused then return refused end
local outcome = redis.call('HGET', KEYS[2], 'outcome')
if outcome then
  if outcome ~= 'open' or ARGV[9] ~= '1' then return 0 end
  local deadline = redis.call('ZSCORE', KEYS[3], ARGV[2])
  if deadline and tonumber(deadline) > tonumber(ARGV[3]) then return 0 end
elseif ARGV[8] == '1' then
  redis.call('HSET', KEYS[2], 'outcome', 'open', 'output', ARGV[7])
else
  return 0
end

for i = 1, #KEYS - 4 do
  local key, a = KEYS[i + 4], 8 + i * 2
  local mine = tonumber(redis.call('HGET', KEYS[2], i) or 0)
  local more = tonumber(ARGV[a]) - mine
  local there = redis.call('EXISTS', key) == 1
  -- A bucket that this holds something in, and that is gone: its window is long over, it must not come back.
  if more > 0 and (there or mine == 0) then
    redis.call('HINCRBY', key, 'held', more)
    if not there then redis.call('EXPIREAT', key, ARGV[a + 1]) end
    redis.call('HINCRBY', KEYS[2], i, more)
  end
end
redis.call('HSET', KEYS[2], 'body', ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[2])
redis.call('EXPIRE', KEYS[3], ARGV[6])
return 1
