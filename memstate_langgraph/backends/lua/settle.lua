-- After a connection was lost while commit.lua may have run: whether it did. If not, it never will.
--
-- KEYS: marker (see commit.lua)
-- ARGV: transaction; milliseconds that the answer is remembered, for the commit that may still arrive

if redis.call('GET', KEYS[1]) == ARGV[1] then
    return 1
end
redis.call('SET', KEYS[1], '!' .. ARGV[1], 'PX', ARGV[2])
return 0
