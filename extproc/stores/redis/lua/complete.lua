#!lua flags=allow-oom
-- The epoch is ready.
--
-- KEYS[1]  the partition's epoch
-- ARGV[1]  the epoch's id
--
-- Returns 1, or 0 where it was ready already.

local refused = refusal(KEYS[1], ARGV[1], false)
if refused then return refused end
if redis.call('HGET', KEYS[1], 'state') == 'ready' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'ready', 'previous', '')
return 1
