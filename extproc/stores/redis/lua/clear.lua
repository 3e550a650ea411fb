#!lua flags=allow-oom
-- Clears what other epochs left behind, as long as this one is current and ready: nobody needs it any more then.
--
-- KEYS[1]    the partition's epoch
-- KEYS[2..]  keys of other epochs
-- ARGV[1]    the epoch's id

local refused = refusal(KEYS[1], ARGV[1], true)
if refused then return refused end
return redis.call('UNLINK', unpack(KEYS, 2))
