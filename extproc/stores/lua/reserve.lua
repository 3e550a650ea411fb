-- Checks every bucket, then holds in all or in none.
--
-- KEYS[1]    the reservation (hash: outcome, output, body, and what each bucket holds: 1, 2, ...)
-- KEYS[2]    the tenant's open reservations (sorted set: id by deadline)
-- KEYS[3..]  the buckets (hashes: used, held, alerted)
-- ARGV[1]    reservation id
-- ARGV[2]    output bound that is wanted, tokens per choice (0: there is none)
-- ARGV[3]    the least that it may be lowered to
-- ARGV[4]    deadline, seconds since the epoch
-- ARGV[5]    the reservation's body, for whoever has to expire it
-- ARGV[6]    seconds to keep the reservation at the most
-- ARGV[7..]  for each bucket: amount; when it may be forgotten (seconds since the epoch); how it admits (0 reserve
--            or strict, 1 soft; 2 more where it is a shadow and never denies); what it has to hold: a fixed part,
--            and one per token of output bound (other than 0 for strict ones only), both in thousandths
--
-- Returns {verdict, output, used, held, used, held, ...}: 1 held, 0 denied, -1 ended before (never opened again);
-- the output bound that was granted; and the counts WITHOUT this hold. Repeating it holds nothing more.
-- All keys share the tenant's hash tag. Numbers stay below 2^53.

local known = redis.call('HMGET', KEYS[1], 'outcome', 'output')
if known[1] and known[1] ~= 'open' then return {-1} end

local output, least = tonumber(ARGV[2]), tonumber(ARGV[3])
local used, held, new, reply = {}, {}, {}, {1, 0}
for i = 1, #KEYS - 2 do
  local count = redis.call('HMGET', KEYS[i + 2], 'used', 'held')
  new[i] = not count[1] and not count[2]
  used[i], held[i] = tonumber(count[1] or 0), tonumber(count[2] or 0)
  if known[1] then held[i] = math.max(0, held[i] - tonumber(redis.call('HGET', KEYS[1], i) or 0)) end
  reply[#reply + 1] = used[i]
  reply[#reply + 1] = held[i]
  local a = 2 + i * 5
  local amount, fixed, slope = tonumber(ARGV[a]), tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  if slope > 0 and tonumber(ARGV[a + 2]) < 2 then
    output = math.min(output, math.floor(((amount - used[i] - held[i]) * 1000 - fixed) / slope))
  end
end
if known[1] then
  reply[2] = tonumber(known[2])
  return reply
end
output = math.max(output, least)
reply[2] = output

local reservation = {KEYS[1], 'outcome', 'open', 'output', output, 'body', ARGV[5]}
local hold = {}
for i = 1, #KEYS - 2 do
  local a = 2 + i * 5
  local amount, rule = tonumber(ARGV[a]), tonumber(ARGV[a + 2])
  hold[i] = math.ceil((tonumber(ARGV[a + 3]) + tonumber(ARGV[a + 4]) * output) / 1000)
  reservation[#reservation + 1] = i
  reservation[#reservation + 1] = hold[i]
  local fits = used[i] + held[i] + hold[i] <= amount
  if rule == 1 then fits = used[i] < amount end
  if rule < 2 and not fits then reply[1] = 0 end
end
if reply[1] == 0 then return reply end

redis.call('HSET', unpack(reservation))
for i = 1, #KEYS - 2 do
  if hold[i] > 0 then
    redis.call('HINCRBY', KEYS[i + 2], 'held', hold[i])
    if new[i] then redis.call('EXPIREAT', KEYS[i + 2], ARGV[3 + i * 5]) end
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
return reply
