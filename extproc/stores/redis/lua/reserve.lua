#!lua
-- Checks every bucket, then holds in all or in none.
--
-- KEYS[1]    the partition's epoch (hash: id, state, run, previous)
-- KEYS[2]    the reservation (hash: outcome, output, body, and what each bucket holds: 1, 2, ...)
-- KEYS[3]    the open reservations (sorted set: id by deadline)
-- KEYS[4]    the entries that wait for the ledger (stream)
-- KEYS[5..]  the buckets (hashes: used, held, alerted)
-- ARGV[1]    the epoch's id
-- ARGV[2]    reservation id
-- ARGV[3]    output bound that is wanted, tokens per choice (0: there is none)
-- ARGV[4]    the least that it may be lowered to
-- ARGV[5]    deadline, seconds since the epoch
-- ARGV[6]    the reservation's body, for whoever has to expire it
-- ARGV[7]    seconds to keep the reservation at the most
-- ARGV[8]    seconds to keep the list of open ones at the least
-- ARGV[9]    how many entries may wait for the ledger: nothing new is held then
-- ARGV[10..] for each bucket: amount; when it may be forgotten (seconds since the epoch); how it admits (0 reserve
--            or strict, 1 soft; 2 more where it is a shadow and never denies); what it has to hold: a fixed part,
--            and one per token of output bound (other than 0 for strict ones only), both in thousandths
--
-- Returns {verdict, output, used, held, used, held, ...}: 1 held, 0 denied, -1 ended before (never opened again);
-- the output bound that was granted; and the counts WITHOUT this hold. Repeating it holds nothing more.
-- All keys share the partition's hash tag. Numbers stay below 2^53.

local refused = refusal(KEYS[1], ARGV[1], true)
if refused then return refused end
local known = redis.call('HMGET', KEYS[2], 'outcome', 'output')
if known[1] and known[1] ~= 'open' then return {-1} end
if not known[1] and redis.call('XLEN', KEYS[4]) >= tonumber(ARGV[9]) then
  return redis.error_reply('BACKLOG too many entries wait for the ledger')
end

local output, least = tonumber(ARGV[3]), tonumber(ARGV[4])
local used, held, new, reply = {}, {}, {}, {1, 0}
for i = 1, #KEYS - 4 do
  local count = redis.call('HMGET', KEYS[i + 4], 'used', 'held')
  new[i] = not count[1] and not count[2]
  used[i], held[i] = tonumber(count[1] or 0), tonumber(count[2] or 0)
  if known[1] then held[i] = math.max(0, held[i] - tonumber(redis.call('HGET', KEYS[2], i) or 0)) end
  reply[#reply + 1] = used[i]
  reply[#reply + 1] = held[i]
  local a = 5 + i * 5
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

local reservation = {KEYS[2], 'outcome', 'open', 'output', output, 'body', ARGV[6]}
local hold = {}
for i = 1, #KEYS - 4 do
  local a = 5 + i * 5
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
for i = 1, #KEYS - 4 do
  if hold[i] > 0 then
    redis.call('HINCRBY', KEYS[i + 4], 'held', hold[i])
    if new[i] then redis.call('EXPIREAT', KEYS[i + 4], ARGV[6 + i * 5]) end
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[7])
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[2])
redis.call('EXPIRE', KEYS[3], ARGV[8])
return reply
