#!lua
-- Checks every bucket, then holds in all or in none.
--
-- KEYS[1]    the partition's epoch (hash: id, state, run, previous)
-- KEYS[2]    the reservation (hash: outcome, output, body, and what each bucket holds: 1, 2, ...)
-- KEYS[3]    the open reservations (sorted set: id by deadline)
-- KEYS[4]    the entries that wait for the ledger (stream)
-- KEYS[5..]  the buckets (hashes: used, held, alerted)
-- ARGV[1]    an array in MessagePack:
--            1  output bound that is wanted, tokens per choice (0: there is none)
--            2  the least that it may be lowered to
--            3  deadline, seconds since the epoch
--            4  seconds to keep the reservation at the most
--            5  seconds to keep the list of open ones at the least
--            6  how many entries may wait for the ledger: nothing new is held then
--            then for each bucket: amount; when it may be forgotten (seconds since the epoch); how it admits (0 reserve
--            or strict, 1 soft; 2 more where it is a shadow and never denies); what it has to hold: a fixed part,
--            and one per token of output bound (other than 0 for strict ones only), both in thousandths
-- ARGV[2]    the reservation's body, for whoever has to expire it
-- ARGV[3]    the reservation's id, where its key does not end in it
--
-- Returns {verdict, output, used, held, used, held, ...}: 1 held, 0 denied, -1 ended before (never opened again);
-- the output bound that was granted; and the counts WITHOUT this hold. Repeating it holds nothing more.
-- All keys share the partition's hash tag. Numbers stay below 2^53.

local start = #KEYS[1] - 4  -- of the epoch's id in keys, after the partition's hash tag
local epoch = string.sub(KEYS[3], start, -6)
local refused = refusal(KEYS[1], epoch, true)
if refused then return refused end
local wants = cmsgpack.unpack(ARGV[1])
local call = redis.call
local known = call('HMGET', KEYS[2], 'outcome', 'output')
if known[1] and known[1] ~= 'open' then return {-1} end
if not known[1] and call('XLEN', KEYS[4]) >= wants[6] then
  return redis.error_reply('BACKLOG too many entries wait for the ledger')
end

local output = wants[1]
local used, held, new, reply = {}, {}, {}, {1, 0}
for i = 1, #KEYS - 4 do
  local count = call('HMGET', KEYS[i + 4], 'used', 'held')
  new[i] = not count[1] and not count[2]
  used[i], held[i] = tonumber(count[1] or 0), tonumber(count[2] or 0)
  if known[1] then held[i] = math.max(0, held[i] - tonumber(call('HGET', KEYS[2], i) or 0)) end
  reply[#reply + 1] = used[i]
  reply[#reply + 1] = held[i]
  local a = 2 + i * 5
  local amount, fixed, slope = wants[a], wants[a + 3], wants[a + 4]
  if slope > 0 and wants[a + 2] < 2 then
    output = math.min(output, math.floor(((amount - used[i] - held[i]) * 1000 - fixed) / slope))
  end
end
if known[1] then
  reply[2] = tonumber(known[2])
  return reply
end
output = math.max(output, wants[2])
reply[2] = output

local reservation = {KEYS[2], 'outcome', 'open', 'output', output, 'body', ARGV[2]}
local hold = {}
for i = 1, #KEYS - 4 do
  local a = 2 + i * 5
  local amount, rule = wants[a], wants[a + 2]
  hold[i] = math.ceil((wants[a + 3] + wants[a + 4] * output) / 1000)
  reservation[#reservation + 1] = i
  reservation[#reservation + 1] = hold[i]
  local fits = used[i] + held[i] + hold[i] <= amount
  if rule == 1 then fits = used[i] < amount end
  if rule < 2 and not fits then reply[1] = 0 end
end
if reply[1] == 0 then return reply end

call('HSET', unpack(reservation))
for i = 1, #KEYS - 4 do
  if hold[i] > 0 then
    call('HINCRBY', KEYS[i + 4], 'held', hold[i])
    if new[i] then call('EXPIREAT', KEYS[i + 4], wants[3 + i * 5]) end
  end
end
call('EXPIRE', KEYS[2], wants[4])
call('ZADD', KEYS[3], wants[3], ARGV[3] or string.sub(KEYS[2], start + #epoch + 3))
call('EXPIRE', KEYS[3], wants[5])
return reply
