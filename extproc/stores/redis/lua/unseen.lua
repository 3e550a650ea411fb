#!lua flags=allow-oom
-- Forgets a replica that was not noted for some time. Belongs to no epoch.
--
-- KEYS[1]  when each replica was noted (sorted set: replica by seconds of this server's clock)
-- ARGV[1]  the replica
-- ARGV[2]  seconds since it was noted, at the least
--
-- Returns 1, or 0 where it was noted since then: it is back.

local at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if at then
  local time = redis.call('TIME')
  local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
  if now - tonumber(at) < tonumber(ARGV[2]) then return 0 end
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return 1
