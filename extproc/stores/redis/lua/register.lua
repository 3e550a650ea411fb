#!lua flags=allow-oom
-- A replica counts in this epoch from now on.
--
-- KEYS[1]  the partition's epoch
-- KEYS[2]  the replicas that registered in it (set)
-- ARGV[1]  the epoch's id
-- ARGV[2]  the replica
-- ARGV[3]  seconds to keep the set at the least

local refused = refusal(KEYS[1], ARGV[1], false)
if refused then return refused end
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
