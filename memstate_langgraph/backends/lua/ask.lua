-- Read several things of one instant.
--
-- KEYS: stamps and turns (see commit.lua)
-- ARGV: a packed list of commands. ROWS is one of our own: a hash or "", then what ZRANGE takes; answers the members
--       and, with a hash, the fields of that name.
-- Answers the values of the keys, then what each command answered.

local answers = {{}}
for n, key in ipairs(KEYS) do
    answers[1][n] = redis.call('GET', key)
end

local function rows(hash, ...)
    local members, found = redis.call('ZRANGE', ...), {}
    if hash == '' then
        return {members, found}
    end
    local scored = select(select('#', ...), ...) == 'WITHSCORES'
    local step = scored and 2 or 1
    local names = {}
    for i = 1, #members, step do
        names[#names + 1] = members[i]
    end
    for i = 1, #names, 1000 do
        local part = redis.call('HMGET', hash, unpack(names, i, math.min(i + 999, #names)))
        for _, row in ipairs(part) do
            found[#found + 1] = row
        end
    end
    return {members, found}
end

for _, command in ipairs(cmsgpack.unpack(ARGV[1])) do
    if command[1] == 'ROWS' then
        answers[#answers + 1] = rows(unpack(command, 2))
    else
        answers[#answers + 1] = redis.call(unpack(command))
    end
end
return answers
