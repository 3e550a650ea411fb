#!lua flags=allow-oom
-- Sets what is used of buckets, before the epoch is ready.
--
-- KEYS[1]    the partition's epoch
-- KEYS[2..]  the buckets (hashes: used, held, alerted)
-- ARGV[1]    the epoch's id
-- ARGV[2..]  for each bucket: what is used; when it may be forgotten (seconds since the epoch)
-- Doing it again sets the same.

local refused = refusal(KEYS[1], ARGV[1], false)
if refused then return refused end
if redis.call('HGET', KEYS[1], 'state') ~= 'learning' then
  return redis.error_reply('UNREADY the epoch is ready already')
end
for i = 2, #KEYS do
  redis.call('HSET', KEYS[i], 'used', ARGV[i * 2 - 2])
  redis.call('EXPIREAT', KEYS[i], ARGV[i * 2 - 1])
end
return 1
