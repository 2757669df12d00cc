-- Run by Lua 5.1 itself: for each line of its input, the line and what it gives.
local prelude = ...
dofile(prelude)
local function text(v)
  if type(v) == "string" then
    return "s:" .. (v:gsub("[^%w%p ]", function(c) return ("\\%03d"):format(c:byte()) end))
  elseif type(v) == "number" then
    return v ~= v and "n:nan" or ("n:%.17g"):format(v)
  end
  return type(v) == "boolean" and tostring(v) or type(v)
end
local function results(ok, ...)
  if not ok then return "error " .. text(((...) or ""):gsub("^[^:]*:%d+: ", "")) end
  local r = {}
  for i = 1, select("#", ...) do r[i] = text((select(i, ...))) end
  return table.concat(r, "\t")
end
for line in io.lines() do
  local f, err = loadstring("return " .. line, "=case")
  if not f then error(line .. ": " .. err) end
  io.write(line, "\t=>\t", results(pcall(f)), "\n")
end
