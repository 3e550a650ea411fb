#!lua flags=allow-oom
-- Ends a reservation: what was held goes back, what is charged is used, and the ledger's entry waits to be written.
--
-- KEYS[1]    the partition's epoch (hash: id, state, run, previous)
-- KEYS[2]    the reservation (hash: outcome, output, body, and what each bucket holds: 1, 2, ...)
-- KEYS[3]    the open reservations (sorted set: id by deadline)
-- KEYS[4]    the entries that wait for the ledger (stream: id, entry, and body where the entry is but the rest)
-- KEYS[5..]  the buckets (hashes: used, held, alerted)
-- ARGV[1]    an array in MessagePack:
--            1  outcome: settled, estimated, released or expired
--            2  seconds to remember the end, so that a repeated or overtaken call finds it
--            3  1: it is charged where it is not known, too; it was admitted without the counters
--            4  1: the reservation's body stands beside its entry, which is the rest of it
--            5  thresholds in percent, ascending (an array)
--            then for each bucket: its charge; the amount that thresholds are a percentage of (0: it has none); when
--            it may be forgotten (seconds since the epoch)
-- ARGV[2]    the ledger's entry; '' for none
-- ARGV[3]    the reservation's id, where its key does not end in it
--
-- Returns {outcome, stream id, bucket, used, threshold, bucket, used, threshold, ...}: the outcome that stands (an
-- earlier end wins, and then nothing changes), where the entry waits ('' for nowhere), and the thresholds that this
-- end crossed. Each is crossed once in the life of a bucket. A repeated call returns the same, for the first answer
-- may have been lost. An unknown reservation changes no bucket and records nothing; its end is remembered, so that a
-- reserve which was overtaken does not open it. Numbers stay below 2^53.
-- It may pass maxmemory: it gives back more than it takes, but for the entry, and `reserve` bounds those.

local start = #KEYS[1] - 4  -- of the epoch's id in keys, after the partition's hash tag
local epoch = string.sub(KEYS[3], start, -6)
local refused = refusal(KEYS[1], epoch, true)
if refused then return refused end
local says = cmsgpack.unpack(ARGV[1])
local outcome, is_local = says[1], says[3] == 1
local call = redis.call
local wanted = {KEYS[2], 'outcome', 'crossed', 'receipt', 'body'}
for i = 1, #KEYS - 4 do wanted[i + 5] = i end
local known = call('HMGET', unpack(wanted))
if known[1] and known[1] ~= 'open' then
  local reply = {known[1], ''}
  if known[1] == outcome then
    reply[2] = known[3] or ''
    for number in string.gmatch(known[2] or '', '%d+') do reply[#reply + 1] = tonumber(number) end
  end
  return reply
end

local reply, forgotten = {outcome, ''}, 0
if known[1] or is_local then
  local id = ARGV[3] or string.sub(KEYS[2], start + #epoch + 3)
  if says[4] == 1 then
    reply[2] = call('XADD', KEYS[4], '*', 'id', id, 'entry', ARGV[2], 'body', known[4])
  elseif ARGV[2] ~= '' then
    reply[2] = call('XADD', KEYS[4], '*', 'id', id, 'entry', ARGV[2])
  end
  for i = 1, #KEYS - 4 do
    local key, a = KEYS[i + 4], 3 + i * 3
    local charge, amount, until_s = says[a], says[a + 1], says[a + 2]
    local count = call('HMGET', key, 'used', 'held', 'alerted')
    local there, mine = count[1] or count[2], tonumber(known[i + 4] or 0)
    forgotten = math.max(forgotten, until_s)
    -- A bucket that this holds something in, and that is gone: its window is long over, it must not come back.
    if there or mine == 0 then
      local used, held = tonumber(count[1] or 0) + charge, tonumber(count[2] or 0)
      -- One that was evicted and came back holds less than it should.
      held = held - math.min(held, mine)
      local alerted = tonumber(count[3] or 0)
      local highest = alerted
      if amount > 0 then
        for _, threshold in ipairs(says[5]) do
          if threshold > alerted and used * 100 >= amount * threshold then
            highest = threshold
            reply[#reply + 1] = i
            reply[#reply + 1] = used
            reply[#reply + 1] = threshold
          end
        end
      end
      if used > 0 or held > 0 then
        call('HSET', key, 'used', used, 'held', held, 'alerted', highest)
        if not there then call('EXPIREAT', key, until_s) end
      elseif there then
        call('DEL', key)  -- as if it had never been: made-up names leave nothing behind
      end
    end
  end
  call('ZREM', KEYS[3], id)
  call('DEL', KEYS[2])
end
local ended = {KEYS[2], 'outcome', outcome, 'crossed', table.concat(reply, ' ', 3)}
if reply[2] ~= '' then
  ended[6], ended[7] = 'receipt', reply[2]
end
call('HSET', unpack(ended))
call('EXPIRE', KEYS[2], says[2])
-- Whoever replays it much later must not charge it again.
if is_local then call('EXPIREAT', KEYS[2], forgotten, 'GT') end
return reply
