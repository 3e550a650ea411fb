#!lua flags=allow-oom
-- Ends a reservation: what was held goes back, what is charged is used, and the ledger's entry waits to be written.
--
-- KEYS[1]    the partition's epoch (hash: id, state, run, previous)
-- KEYS[2]    the reservation (hash: outcome, output, body, and what each bucket holds: 1, 2, ...)
-- KEYS[3]    the open reservations (sorted set: id by deadline)
-- KEYS[4]    the entries that wait for the ledger (stream: id, entry, and body where the entry is but the rest)
-- KEYS[5..]  the buckets (hashes: used, held, alerted)
-- ARGV[1]    the epoch's id
-- ARGV[2]    reservation id
-- ARGV[3]    outcome: settled, estimated, released or expired
-- ARGV[4]    seconds to remember the end, so that a repeated or overtaken call finds it
-- ARGV[5]    thresholds in percent, ascending, separated by commas; may be empty
-- ARGV[6]    the ledger's entry; '' for none
-- ARGV[7]    1: it is charged where it is not known, too; it was admitted without the counters
-- ARGV[8]    1: the reservation's body stands beside its entry, which is the rest of it
-- ARGV[9..]  for each bucket: its charge; the amount that thresholds are a percentage of (0: it has none); when it
--            may be forgotten (seconds since the epoch)
--
-- Returns {outcome, stream id, bucket, used, threshold, bucket, used, threshold, ...}: the outcome that stands (an
-- earlier end wins, and then nothing changes), where the entry waits ('' for nowhere), and the thresholds that this
-- end crossed. Each is crossed once in the life of a bucket. A repeated call returns the same, for the first answer
-- may have been lost. An unknown reservation changes no bucket and records nothing; its end is remembered, so that a
-- reserve which was overtaken does not open it. Numbers stay below 2^53.
-- It may pass maxmemory: it gives back more than it takes, but for the entry, and `reserve` bounds those.

local refused = refusal(KEYS[1], ARGV[1], true)
if refused then return refused end
local wanted = {KEYS[2], 'outcome', 'crossed', 'receipt', 'body'}
for i = 1, #KEYS - 4 do wanted[#wanted + 1] = i end
local known = redis.call('HMGET', unpack(wanted))
if known[1] and known[1] ~= 'open' then
  local reply = {known[1], ''}
  if known[1] == ARGV[3] then
    reply[2] = known[3] or ''
    for number in string.gmatch(known[2] or '', '%d+') do reply[#reply + 1] = tonumber(number) end
  end
  return reply
end

local reply, thresholds, forgotten = {ARGV[3], ''}, {}, 0
for threshold in string.gmatch(ARGV[5], '%d+') do thresholds[#thresholds + 1] = tonumber(threshold) end
if known[1] or ARGV[7] == '1' then
  if ARGV[8] == '1' then
    reply[2] = redis.call('XADD', KEYS[4], '*', 'id', ARGV[2], 'entry', ARGV[6], 'body', known[4])
  elseif ARGV[6] ~= '' then
    reply[2] = redis.call('XADD', KEYS[4], '*', 'id', ARGV[2], 'entry', ARGV[6])
  end
  for i = 1, #KEYS - 4 do
    local key, a = KEYS[i + 4], 6 + i * 3
    local count = redis.call('HMGET', key, 'used', 'held', 'alerted')
    local there, mine = count[1] or count[2], tonumber(known[i + 4] or 0)
    forgotten = math.max(forgotten, tonumber(ARGV[a + 2]))
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
  redis.call('ZREM', KEYS[3], ARGV[2])
  redis.call('DEL', KEYS[2])
end
redis.call('HSET', KEYS[2], 'outcome', ARGV[3], 'crossed', table.concat(reply, ' ', 3))
if reply[2] ~= '' then redis.call('HSET', KEYS[2], 'receipt', reply[2]) end
redis.call('EXPIRE', KEYS[2], ARGV[4])
-- Whoever replays it much later must not charge it again.
if ARGV[7] == '1' then redis.call('EXPIREAT', KEYS[2], forgotten, 'GT') end
return reply
