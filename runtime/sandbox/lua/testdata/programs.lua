-- Runs programs that end in lines of --END, and prints what each says before another such line.
local lines, said = {}, nil
function say(...)
  local values = {}
  for i = 1, select("#", ...) do
    local v = select(i, ...)
    if type(v) == "number" then v = string.format("%.14g", v) elseif type(v) == "table" or type(v) == "function" then v = type(v) end
    values[i] = tostring(v)
  end
  said[#said + 1] = table.concat(values, " ")
end
for line in io.lines() do
  if line == "--END" then
    said, global = {}, nil
    assert(loadstring(table.concat(lines, "\n"), "=program"))()
    lines = {}
    io.write(table.concat(said, "\n"), "\n--END\n")
  else
    lines[#lines + 1] = line
  end
end
