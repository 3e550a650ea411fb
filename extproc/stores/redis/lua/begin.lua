#!lua flags=allow-oom
-- The current epoch; begins one where there is none, or where it began in another process.
--
-- KEYS[1]  the partition's epoch (hash: id, state, run, previous)
-- ARGV[1]  the id of a new one
--
-- Returns {id, state}. `previous` is the last epoch that was ready, for what was open in it.

local epoch = redis.call('HMGET', KEYS[1], 'id', 'run', 'state', 'previous')
if epoch[1] and epoch[2] == RUN then return {epoch[1], epoch[3]} end
local previous = epoch[4] or ''
if epoch[3] == 'ready' then previous = epoch[1] end
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'run', RUN, 'state', 'learning', 'previous', previous)
return {ARGV[1], 'learning'}
