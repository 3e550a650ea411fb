-- What stands before every script: the guard of an epoch. The line before this one is `local RUN = '...'`, the run
-- id of the process that the script was loaded into: another process has other scripts.
--
-- An epoch's keys are for those only who know its id, in the process that it began in: after a restart or a failover
-- acknowledged writes may be gone, whatever the epoch's key says.

local function refusal(key, id, ready)
  local epoch = redis.call('HMGET', key, 'id', 'run', 'state')
  if epoch[1] ~= id or epoch[2] ~= RUN then
    return redis.error_reply('UNREADY another epoch has begun')
  end
  if ready and epoch[3] ~= 'ready' then
    return redis.error_reply('UNREADY the counters are being rebuilt')
  end
end

