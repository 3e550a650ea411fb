-- Checks every bucket, then holds the cost in all or in none.
--
-- KEYS[1]    the reservation (hash: outcome, cost, body)
-- KEYS[2]    the tenant's open reservations (sorted set: id by deadline)
-- KEYS[3..]  the buckets (hashes: used, held)
-- ARGV[1]    reservation id
-- ARGV[2]    cost, tokens
-- ARGV[3]    deadline, seconds since the epoch
-- ARGV[4]    the reservation's body, for whoever has to expire it
-- ARGV[5]    seconds to keep the reservation at the most
-- ARGV[6..]  for each bucket: its amount, then when it may be forgotten (seconds since the epoch)
--
-- Returns {verdict, used, held, used, held, ...}: 1 held, 0 denied, -1 ended before (never opened again); and
-- the counts WITHOUT this hold. Repeating it holds nothing more.
-- All keys share the tenant's hash tag. Numbers stay below 2^53.

local cost = tonumber(ARGV[2])
local known = redis.call('HMGET', KEYS[1], 'outcome', 'cost')
local mine = 0
if known[1] == 'open' then mine = tonumber(known[2]) end

local reply = {1}
for i = 3, #KEYS do
  local count = redis.call('HMGET', KEYS[i], 'used', 'held')
  local used = tonumber(count[1] or 0)
  local held = math.max(0, tonumber(count[2] or 0) - mine)
  reply[#reply + 1] = used
  reply[#reply + 1] = held
  if used + held + cost > tonumber(ARGV[6 + (i - 3) * 2]) then reply[1] = 0 end
end
if known[1] then
  reply[1] = known[1] == 'open' and 1 or -1
  return reply
end
if reply[1] == 0 then return reply end

for i = 3, #KEYS do
  redis.call('HINCRBY', KEYS[i], 'held', cost)
  redis.call('EXPIREAT', KEYS[i], ARGV[7 + (i - 3) * 2])
end
redis.call('HSET', KEYS[1], 'outcome', 'open', 'cost', cost, 'body', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
return reply
