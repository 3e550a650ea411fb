-- Ends a reservation: what was held goes back, what is charged is used.
--
-- KEYS[1]    the reservation (hash: outcome, output, body, and what each bucket holds: 1, 2, ...)
-- KEYS[2]    the tenant's open reservations (sorted set: id by deadline)
-- KEYS[3..]  the buckets (hashes: used, held, alerted)
-- ARGV[1]    reservation id
-- ARGV[2]    outcome: settled, estimated, released or expired
-- ARGV[3]    seconds to remember the end, so that a repeated or overtaken call finds it
-- ARGV[4]    thresholds in percent, ascending, separated by commas; may be empty
-- ARGV[5..]  for each bucket: its charge; the amount that thresholds are a percentage of (0: it has none); when it
--            may be forgotten (seconds since the epoch)
--
-- Returns {outcome, bucket, used, threshold, bucket, used, threshold, ...}: the outcome that stands (an earlier
-- end wins, and then nothing changes), and the thresholds that this end crossed. Each is crossed once in the life
-- of a bucket. A repeated call returns the same, for the first answer may have been lost. An unknown reservation
-- changes no bucket; its end is remembered, so that a reserve which was overtaken does not open it.
-- Numbers stay below 2^53.

local wanted = {KEYS[1], 'outcome', 'crossed'}
for i = 1, #KEYS - 2 do wanted[#wanted + 1] = i end
local known = redis.call('HMGET', unpack(wanted))
if known[1] and known[1] ~= 'open' then
  local reply = {known[1]}
  if known[1] == ARGV[2] then
    for number in string.gmatch(known[2] or '', '%d+') do reply[#reply + 1] = tonumber(number) end
  end
  return reply
end

local reply, thresholds = {ARGV[2]}, {}
for threshold in string.gmatch(ARGV[4], '%d+') do thresholds[#thresholds + 1] = tonumber(threshold) end
if known[1] then
  for i = 1, #KEYS - 2 do
    local key, a = KEYS[i + 2], 2 + i * 3
    local count = redis.call('HMGET', key, 'used', 'held', 'alerted')
    local there, mine = count[1] or count[2], tonumber(known[i + 2] or 0)
    -- A bucket that this holds something in, and that is gone: its window is long over, it must not come back.
    if there or mine == 0 then
      local used, held = tonumber(count[1] or 0) + tonumber(ARGV[a]), tonumber(count[2] or 0)
      -- One that was evicted and came back holds less than it should.
      held = held - math.min(held, mine)
      local amount, alerted = tonumber(ARGV[a + 1]), tonumber(count[3] or 0)
      local highest = alerted
      for _, threshold in ipairs(thresholds) do
        if amount > 0 and threshold > alerted and used * 100 >= amount * threshold then
          highest = threshold
          reply[#reply + 1] = i
          reply[#reply + 1] = used
          reply[#reply + 1] = threshold
        end
      end
      if used > 0 or held > 0 then
        redis.call('HSET', key, 'used', used, 'held', held, 'alerted', highest)
        if not there then redis.call('EXPIREAT', key, ARGV[a + 2]) end
      elseif there then
        redis.call('DEL', key)  -- as if it had never been: made-up names leave nothing behind
      end
    end
  end
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('DEL', KEYS[1])
end
redis.call('HSET', KEYS[1], 'outcome', ARGV[2], 'crossed', table.concat(reply, ' ', 2))
redis.call('EXPIRE', KEYS[1], ARGV[3])
return reply
