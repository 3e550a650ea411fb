#!lua flags=allow-oom
-- Notes which generation the ledger has. Belongs to no epoch.
--
-- KEYS[1]  the highest one (hash: number)
-- ARGV[1]  the generation
-- ARGV[2]  seconds to keep it
--
-- Returns the highest one.

local highest = math.max(tonumber(ARGV[1]), tonumber(redis.call('HGET', KEYS[1], 'number') or '0'))
redis.call('HSET', KEYS[1], 'number', string.format('%d', highest))
redis.call('EXPIRE', KEYS[1], ARGV[2])
return highest
