-- The one place where a store changes: check that what a plan read has not moved, then write all of it, as one step
-- that no other client sees half of. Redis does not roll a script back, so whatever may be refused is refused before
-- the first write.
--
-- The keys of a store. They share the hash tag {prefix}, so that they live in one slot of a cluster. Texts in a
-- name are separated by NUL, which no text of ours contains.
--
--   {prefix}:meta                        hash    version: of this layout; seq: of the newest log entry
--   {prefix}:facts                       hash    fact id -> "<seq> <fact as JSON>", as it is now
--   {prefix}:heads                       hash    fact id -> [version, seq of its newest entry, seq of the one in force]
--   {prefix}:singletons                  hash    [type, namespace, key value] -> fact id
--   {prefix}:facts:all                   zset    fact ids by seq; further: facts:type:<type>,
--                                                facts:space:<type>NUL<namespace>, facts:session:<session>,
--                                                facts:ephemeral:<session>
--   {prefix}:facts:namespaces            zset    "<namespace>NUL<fact id>", by name
--   {prefix}:facts:ends                  zset    ids of facts with a time to live by when it is over
--   {prefix}:log                         hash    seq -> entry; append-only: written with HSETNX, but for what is purged
--   {prefix}:log:tx:<tx>                 zset    seqs; further: log:fact:<fact id>, log:session:<session>
--   {prefix}:log:keys                    hash    idempotency key -> seq
--   {prefix}:steps                       hash    tx -> [seq, session, cause], of the transactions that rollback counts
--   {prefix}:steps:all                   zset    txs by seq; further: steps:session:<session>, steps:<cause>:<value>
--   {prefix}:vectors                     hash    vector id -> row
--   {prefix}:vectors:names               zset    indexes; vectors:in:<index>: their ids by name
--   {prefix}:vectors:of:<fact id>        zset    ids of those that are live or were
--   {prefix}:vectors:leases              zset    ids of intended ones by end of lease
--   {prefix}:vectors:due:<index>         zset    ids to be deleted, by time
--   {prefix}:reads                       zset    item ids by when they were last read
--   {prefix}:threads                     zset    threads with checkpoints or pending writes, by name
--   {prefix}:spaces:<thread>             zset    the namespaces that a thread ever had
--   {prefix}:checkpoints                 zset    "<id>NUL<namespace>NUL<thread>", by name
--   {prefix}:checkpoints:<thread>NUL<ns> hash    checkpoint id -> row; ids:<thread>NUL<ns>: zset of the ids
--   {prefix}:runs:<run>                  zset    "<thread>NUL<namespace>NUL<id>"
--   {prefix}:values:<thread>NUL<ns>      hash    "<channel>NUL<version>" -> row
--   {prefix}:writes                      zset    "<thread>NUL<namespace>NUL<id>" of places with pending writes
--   {prefix}:writes:<place>              hash    "<task>NUL<index>" -> row
--   {prefix}:pools                       hash    thread -> pool; pool:<pool>: zset of its threads
--   {prefix}:chunks:<pool>               hash    chunk id -> row
--   {prefix}:stamp:<scope>               string  the transaction that last changed a scope: the log, a thread, a pool
--   {prefix}:turn:<scope>                string  whose turn it is to change a scope that many want to change; expires
--   {prefix}:baton:<scope>               list    pushed when a turn ends, for whoever waits longest; expires
--   {prefix}:marker:<worker>             string  the last transaction of a worker's connection; expires
--
-- KEYS: marker; the stamps to check; the turns of what is changed, or held
-- ARGV: transaction; how many stamps; what each of them must be ("" for none); a packed list of commands
-- Answers {"done"}, {"moved", n} (the nth stamp), {"taken", n} (the nth turn), {"given up"} (see settle.lua).

local marker, tx, checks = KEYS[1], ARGV[1], tonumber(ARGV[2])

if redis.call('GET', marker) == '!' .. tx then
    return {'given up'}
end
for n = 1, checks do
    if (redis.call('GET', KEYS[1 + n]) or '') ~= ARGV[2 + n] then
        return {'moved', n}
    end
end
for n = 1, #KEYS - 1 - checks do
    local turn = redis.call('GET', KEYS[1 + checks + n])
    if turn and turn ~= tx then
        return {'taken', n}
    end
end

-- The first of the commands is refused when the server is out of memory, read-only or cannot write its disk; later
-- ones are not.
for _, command in ipairs(cmsgpack.unpack(ARGV[3 + checks])) do
    redis.call(unpack(command))
end
for n = 1, #KEYS - 1 - checks do
    if redis.call('DEL', KEYS[1 + checks + n]) == 1 then
        local baton = string.gsub(KEYS[1 + checks + n], '}:turn:', '}:baton:', 1)
        redis.call('DEL', baton)
        redis.call('LPUSH', baton, tx)
        redis.call('PEXPIRE', baton, 100)
    end
end
return {'done'}
