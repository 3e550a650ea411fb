-- Ends a reservation: what was held goes back, what is charged is used.
--
-- KEYS[1]    the reservation (hash: outcome, cost, body)
-- KEYS[2]    the tenant's open reservations (sorted set: id by deadline)
-- KEYS[3..]  the buckets (hashes: used, held)
-- ARGV[1]    reservation id
-- ARGV[2]    outcome: settled, estimated, released or expired
-- ARGV[3]    charge, tokens
-- ARGV[4]    seconds to remember the end, so that a repeated or overtaken call finds it
--
-- Returns the outcome that stands: an earlier end wins, and then nothing changes. An unknown reservation changes
-- no bucket; its end is remembered, so that a reserve which was overtaken does not open it.

local outcome = redis.call('HGET', KEYS[1], 'outcome')
if outcome and outcome ~= 'open' then return outcome end

if outcome then
  local cost = tonumber(redis.call('HGET', KEYS[1], 'cost'))
  for i = 3, #KEYS do
    -- A bucket that is gone (its window is long over) must not come back with a negative hold.
    if redis.call('EXISTS', KEYS[i]) == 1 then
      -- One that was evicted and came back holds less than it should.
      local held = tonumber(redis.call('HGET', KEYS[i], 'held') or 0)
      -- Subtracted, not negated: -0 is no integer to Redis 7.0.
      redis.call('HINCRBY', KEYS[i], 'held', 0 - math.min(cost, held))
      redis.call('HINCRBY', KEYS[i], 'used', ARGV[3])
    end
  end
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[1], 'body')
end
redis.call('HSET', KEYS[1], 'outcome', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return ARGV[2]
