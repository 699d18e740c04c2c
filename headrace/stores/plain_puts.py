"""The rule by which plain rows are put, as the server runs it: the newest by (timestamp, created) stays, the later write wins a tie."""

from typing import Final

from headrace.stores.change_feed import ANNOUNCE, EVERYTHING

# A row of another schema than the new one's cannot be read by the new one's readers: it gives way whatever its times.
PUT: Final = (
    ANNOUNCE
    + f"""
local function put(commit, changes, announced, prefix, words, first, last)
  local written = {{}}
  for i = first, last, 2 do
    local key, new = words[i], words[i + 1]
    local old, keep = redis.call('GETRANGE', prefix .. key, 0, 23), false
    if #old == 24 and string.sub(old, 1, 8) == string.sub(new, 1, 8) then
      local ot, oc = struct.unpack('>i8i8', string.sub(old, 9, 24))
      local nt, nc = struct.unpack('>i8i8', string.sub(new, 9, 24))
      keep = nt < ot or (nt == ot and nc < oc)
    end
    if not keep then
      redis.call('SET', prefix .. key, new)
      written[#written + 1] = key
      if announced ~= '' and string.find(key, '\\n', 1, true) then announced = '{EVERYTHING}' end
    end
  end
  if announced ~= '' and #written > 0 then announce(commit, changes, announced, table.concat(written, '\\n')) end
end
"""
)
"""Lua: keys of commit hash and feed; the view, or nothing where its rows are not announced; what the names of its rows begin with;
and where among `words` there are entity key, row, entity key, row..."""

# KEYS: commit hash, feed   ARGV: view or nothing, prefix, entity key, row, ...
PUT_SCRIPT: Final = PUT + "put(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV, 3, #ARGV) return 1"
