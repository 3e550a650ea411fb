#!lua flags=allow-oom
-- Moves an entry to where people find it and nothing tries it again.
--
-- KEYS[1]  the entries that wait (stream)
-- KEYS[2]  the entries that were set aside (stream: text, reason)
-- ARGV[1]  its id in the stream that waits; '' where it does not wait
-- ARGV[2]  its reservation's id
-- ARGV[3]  its text; '' for what waits
-- ARGV[4]  why

local text = ARGV[3]
if ARGV[1] ~= '' then
  local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
  local fields = found[1] and found[1][2] or {}
  if found[1] and (fields[2] or '') == ARGV[2] then
    if text == '' then text = fields[4] or table.concat(fields, ' ') end
    redis.call('XDEL', KEYS[1], ARGV[1])
  end
end
if text ~= '' then redis.call('XADD', KEYS[2], '*', 'text', text, 'reason', ARGV[4]) end
return 1
