-- An address in /etc/hosts and its names. What else stands there is kept: other names of the address, comments, other lines.
-- A name stands at one IPv4 and one IPv6 address at most, so it leaves the line of another address of the same kind.

local PATH = "/etc/hosts"

local function canonical_v4(text)
  local list = {string.match(text, "^(%d+)%.(%d+)%.(%d+)%.(%d+)$")}
  for _, part in ipairs(list) do
    if tonumber(part) > 255 or string.find(part, "^0%d") then
      return nil
    end
  end
  return list[1] and table.concat(list, ".")
end

-- One spelling of each address, and its family; of what is none, the text itself.
local function canonical(text)
  local v4 = canonical_v4(text)
  if v4 then
    return v4, 4
  end
  local address, zone = string.match(string.lower(text), "^([%x:.]+)(%%?.*)$")
  local head, tail = string.match(address or "", "^(.*:)(%d+%.%d+%.%d+%.%d+)$")
  if head and canonical_v4(tail) then
    local a, b, c, d = string.match(tail, "(%d+)%.(%d+)%.(%d+)%.(%d+)")
    address = head .. string.format("%x:%x", a * 256 + b, c * 256 + d)
  end
  local before, after = string.match(address or "", "^(.-)::(.*)$")
  local groups, rest = {}, {}
  for group in string.gmatch(before or address or "", "[^:]+") do
    groups[#groups + 1] = tonumber(group, 16)
  end
  for group in string.gmatch(after or "", "[^:]+") do
    rest[#rest + 1] = tonumber(group, 16)
  end
  while before and #groups + #rest < 8 do
    groups[#groups + 1] = 0
  end
  for _, group in ipairs(rest) do
    groups[#groups + 1] = group
  end
  if #groups ~= 8 or not string.find(address, ":", 1, true) then
    return string.lower(text), 0
  end
  for i, group in ipairs(groups) do
    groups[i] = string.format("%x", group)
  end
  return table.concat(groups, ":") .. zone, 6
end

-- The lines of a text, each with what it says; those that say nothing are only text.
local function parse(text)
  local lines, at = {}, 1
  while at <= #text do
    local stop = string.find(text, "\n", at, true) or #text
    local line = {text = string.sub(text, at, stop)}
    local said, tail = string.match(line.text, "^([^#\r\n]*)(.*)$")
    local address, gap, rest = string.match(said, "^%s*(%S+)(%s+)(.*)$")
    if address then
      line.address, line.family = canonical(address)
      line.head, line.names, line.tail = string.match(said, "^%s*") .. address .. gap, {}, tail
      for name in string.gmatch(rest, "%S+") do
        line.names[#line.names + 1] = name
      end
      if string.find(tail, "^#") then
        line.tail = (string.match(rest, "%s+$") or " ") .. tail
      end
    end
    lines[#lines + 1] = line
    at = stop + 1
  end
  return lines
end

local function set_names(line, names)
  line.names, line.gone = names, #names == 0
  line.text = line.head .. table.concat(names, " ") .. line.tail
end

-- The names of a list that are not in the set, and whether any was.
local function without(list, set)
  local left = {}
  for _, name in ipairs(list) do
    if not set[string.lower(name)] then
      left[#left + 1] = name
    end
  end
  return left, #left < #list
end

-- Whether a list has the names, in their order.
local function has(list, names)
  local next = 1
  for _, name in ipairs(list) do
    if names[next] and string.lower(name) == string.lower(names[next]) then
      next = next + 1
    end
  end
  return next > #names
end

local function joined(lines)
  local out = {}
  for _, line in ipairs(lines) do
    if not line.gone then
      out[#out + 1] = line.text
    end
  end
  return table.concat(out)
end

return script {
  name = "hosts-entry",
  version = "2.1",
  description = "add names to an address in /etc/hosts, or remove them",
  params = {
    address = {type = "ip", required = true, description = "IPv4 or IPv6"},
    names = {type = "list", default = {}, description = "the names, the full one first; with absent, none means all"},
    state = {type = "string", default = "present", enum = {"present", "absent"}},
  },
  os = {"linux"},
  needs = {"file:/etc/hosts"},

  run = function(p)
    local address, family = canonical(p.address)
    local set, names = {}, {}
    for _, name in ipairs(p.names) do
      if type(name) ~= "string" or not string.find(name, "^[%w_][%w_.-]*$") then
        error("names: " .. tostring(name) .. " is no host name")
      end
      if not set[string.lower(name)] then
        set[string.lower(name)], names[#names + 1] = true, name
      end
    end
    local absent = p.state == "absent"
    local loopback = address == "127.0.0.1" or address == canonical("::1")
    if loopback and (absent and (#names == 0 or set.localhost) or not absent and not set.localhost) then
      error(p.address .. " must keep the name localhost")
    elseif not absent and #names == 0 then
      error("names is empty")
    elseif not absent and not loopback and set.localhost then
      error("localhost is the name of 127.0.0.1 and ::1")
    end

    local text = file.exists(PATH) and file.read(PATH) or ""
    local lines = parse(text)
    local held, related, first
    for _, line in ipairs(lines) do
      if line.address == address then
        local left, found = without(line.names, set)
        if absent then
          set_names(line, #names > 0 and left or {})
        end
        held = held or has(line.names, names) and line
        related, first = related or found and line, first or line
      elseif line.family == family and not absent then
        local left, found = without(line.names, set)
        if found then
          set_names(line, left)
        end
      end
    end
    if not absent and not held then
      held = related or first
      if held then
        local all = {unpack(names)}
        for _, name in ipairs((without(held.names, set))) do
          all[#all + 1] = name
        end
        set_names(held, all)
      else
        local last = lines[#lines]
        if last and not string.find(last.text, "\n$") then
          last.text, last.tail = last.text .. "\n", last.tail and last.tail .. "\n"
        end
        held = {text = p.address .. "\t" .. table.concat(names, " ") .. (last and string.match(last.text, "\r?\n$") or "\n")}
        lines[#lines + 1] = held
      end
    end

    local new, result = joined(lines), {changed = false}
    if string.find(text, "manage_etc_hosts' as True", 1, true) then -- as its templates say of themselves
      result.note = "cloud-init writes " .. PATH .. " anew at each boot (manage_etc_hosts), without these names"
    end
    if new == text then
      return result
    end
    local how = {mode = "0644"}
    if file.exists(PATH) then
      how = {inplace = file.stat(PATH).type == "symlink"} -- a link stays one
    end
    file.write(PATH, new, how)
    for _, line in ipairs(parse(file.read(PATH))) do -- nothing contradicts it
      local _, found = without(line.names or {}, set)
      if found and line.family == family and (line.address == address) == absent then
        error("names still stand in the line " .. line.text)
      end
    end
    result.changed = true
    return result
  end,
}
