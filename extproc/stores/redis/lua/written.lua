#!lua flags=allow-oom
-- Entries are in the ledger: they wait no longer.
--
-- KEYS[1]    the entries that wait (stream)
-- ARGV[1..]  for each: its id in the stream; its reservation's id
--
-- A server that lost its last writes may give an id again that it gave before: only the same entry is removed.

for i = 1, #ARGV, 2 do
  local found = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])
  if found[1] and (found[1][2][2] or '') == ARGV[i + 1] then redis.call('XDEL', KEYS[1], ARGV[i]) end
end
return 1
