#!lua flags=allow-oom
-- Notes that a replica is here. Belongs to no epoch.
--
-- KEYS[1]  when each replica was noted (sorted set: replica by seconds of this server's clock)
-- ARGV[1]  the replica
-- ARGV[2]  seconds after which a replica is forgotten
-- ARGV[3]  seconds that count of a time in which no replica was noted
-- ARGV[4]  seconds to keep the set
--
-- Returns {replica, seconds, replica, seconds, ..., now}: when each was noted before, the longest unseen first.
-- If no replica was noted for a while, this server was away, or its clock was set. Nobody is gone for that, and
-- nobody is here for ever whose note lies in the future: all notes are moved.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local noted = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'WITHSCORES')
local silence = now - tonumber(noted[#noted] or now)
local skipped = math.min(silence, math.max(0, silence - tonumber(ARGV[3])))
if skipped ~= 0 then
  for i = 1, #noted, 2 do
    noted[i + 1] = string.format('%.6f', tonumber(noted[i + 1]) + skipped)
    redis.call('ZADD', KEYS[1], noted[i + 1], noted[i])
  end
end
for i = 1, #noted, 2 do
  if now - tonumber(noted[i + 1]) <= tonumber(ARGV[2]) then break end
  redis.call('ZREM', KEYS[1], noted[i])
end
noted[#noted + 1] = string.format('%.6f', now)
redis.call('ZADD', KEYS[1], noted[#noted], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return noted
