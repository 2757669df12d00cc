-- What the cases use, in Lua 5.1 and in ours.
function collect(s, p)
  local r = {}
  for a, b, c in string.gmatch(s, p) do
    r[#r + 1] = tostring(a) .. "/" .. tostring(b) .. "/" .. tostring(c)
  end
  return #r, table.concat(r, "|")
end
function swap(...)
  local r = {}
  for i = 1, select("#", ...) do r[i] = tostring((select(i, ...))) end
  return "<" .. table.concat(r, ",") .. ">"
end
function some(a) if #tostring(a) % 2 == 0 then return nil end return "#" end
map = {a = "A", b = 2, ["1"] = false, ab = "[ab]", [1] = "one", [2] = "two"}
function list(t) local r = {} for i = 1, #t do r[i] = tostring(t[i]) end return #t, table.concat(r, " ") end
function with(f, t, ...) local n = select("#", f(t, ...)) local r = f and {list(t)} return n, unpack(r) end
function sorted(t, less) table.sort(t, less) return list(t) end
function down(a, b) return a > b end
