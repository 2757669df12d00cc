-- Kernel parameters: for every boot in /etc/sysctl.d, and now. Both are looked at: what the kernel made of each value, and
-- that no later file has another one.

-- Where settings for each boot stand. Of two files of one name, that of the first directory counts.
local PLACES = {"/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d"}
local READERS = {"/usr/lib/systemd/systemd-sysctl", "/lib/systemd/systemd-sysctl"} -- which do not read /etc/sysctl.conf

-- "net.ipv4.ip_forward" is net/ipv4/ip_forward below /proc/sys, and a slash in such a name means a dot. A name whose first
-- separator is a slash is the path.
local function path_of(name)
  if string.match(name, "[./]") ~= "/" then
    name = string.gsub(name, "[./]", {["."] = "/", ["/"] = "."})
  end
  return "/proc/sys/" .. name
end

local function words(text)
  local list = {}
  for word in string.gmatch(text, "%S+") do
    list[#list + 1] = word
  end
  return table.concat(list, " ")
end

-- A list of numbers, such as 8080,9148,9149, as the kernel tells it: 8080,9148-9149. Other words as they are.
local function ranges(word)
  local list, out = {}, {}
  for item in string.gmatch(word .. ",", "([^,]*),") do
    local first, last = string.match(item, "^(%d+)-?(%d*)$")
    if not first then
      return word
    end
    list[#list + 1] = {tonumber(first), tonumber(last) or tonumber(first)}
  end
  table.sort(list, function(a, b) return a[1] < b[1] end)
  for _, range in ipairs(list) do
    local before = out[#out]
    if before and range[1] <= before[2] + 1 then
      before[2] = math.max(before[2], range[2])
    else
      out[#out + 1] = range
    end
  end
  for i, range in ipairs(out) do
    out[i] = range[1] .. "-" .. range[2]
  end
  return table.concat(out, ",")
end

-- A number as C writes it, which is how the kernel takes one: decimal, octal behind a 0, hexadecimal behind 0x. nil of other words.
local function number(word)
  local sign, digits = string.match(word or "", "^(%-?)(%w+)$")
  local hex, octal = string.match(digits or "", "^0[xX](%x+)$"), string.match(digits or "", "^0[0-7]*$")
  local n = hex and tonumber(hex, 16) or octal and tonumber(octal, 8) or string.match(digits or "", "^[1-9]%d*$")
  n = tonumber(n)
  return n and math.abs(n) < 2^53 and (sign == "-" and -n or n) or nil
end

-- Compares values as the kernel takes and tells them: 0x10 is told as 16.
local function same(a, b)
  local left, right = {}, {}
  for word in string.gmatch(a, "%S+") do
    left[#left + 1] = word
  end
  for word in string.gmatch(b, "%S+") do
    right[#right + 1] = word
  end
  for i = 1, math.max(#left, #right) do
    local x, y = left[i], right[i]
    local m, n = number(x), number(y)
    local equal = x == y or m and m == n
    equal = equal or x and y and string.find(x .. y, "[,-]") and ranges(x) == ranges(y)
    if not equal then
      return false
    end
  end
  return true
end

-- The value as the kernel takes it.
local function text_of(name, value)
  if type(value) == "boolean" then
    return value and "1" or "0"
  elseif type(value) == "number" then
    if value ~= math.floor(value) or math.abs(value) >= 2^53 then
      error("settings: the number of " .. name .. " is not exact; give it as text")
    end
    return string.format("%.0f", value)
  elseif type(value) ~= "string" or string.find(value, "[^%C\t]") then
    error("settings: the value of " .. name .. " is not one line of text or a number")
  end
  return words(value)
end

-- What goes first: to change whether packets are forwarded sets other parameters anew, and what is of all interfaces sets that of
-- each.
local function rank(path)
  if path == "/proc/sys/net/ipv4/ip_forward" or string.find(path, "^/proc/sys/net/ipv%d/conf/all/forwarding$") then
    return 0
  end
  local of = string.match(path, "^/proc/sys/net/ipv%d/conf/(%w+)/")
  return of == "all" and 1 or of == "default" and 2 or 3
end

-- The file of the parameters that ufw sets when it starts; nil where it does not.
local function of_ufw()
  local enabled = file.exists("/etc/ufw/ufw.conf") and file.read("/etc/ufw/ufw.conf") or ""
  if string.find("\n" .. string.lower(enabled), "\n%s*enabled%s*=[%s\"']*yes") then
    local default = file.exists("/etc/default/ufw") and file.read("/etc/default/ufw") or ""
    local path = string.match("\n" .. default, "\n%s*IPT_SYSCTL%s*=[ \t\"']*([^%s\"']+)")
    return path and file.exists(path) and path or nil
  end
end

-- The files that set parameters at each boot, in the order in which they are read.
local function files_at_boot()
  local names, of = {}, {}
  for _, dir in ipairs(PLACES) do
    for _, path in ipairs(file.glob(dir .. "/*.conf")) do
      local name = string.match(path, "[^/]*$")
      if not of[name] then
        names[#names + 1], of[name] = name, path
      end
    end
  end
  table.sort(names)
  local list, legacy = {}, true
  for _, name in ipairs(names) do
    list[#list + 1] = of[name]
  end
  for _, path in ipairs(READERS) do
    legacy = legacy and not file.exists(path)
  end
  if legacy and file.exists("/etc/sysctl.conf") then
    list[#list + 1] = "/etc/sysctl.conf"
  end
  list[#list + 1] = of_ufw()
  return list
end

-- Fails if a file that is read after ours sets a parameter otherwise.
local function check_boot(ours, want)
  local behind = false
  for _, path in ipairs(files_at_boot()) do
    local ok, text = pcall(file.read, path) -- a link to nothing, such as /dev/null, sets nothing
    local number = 0
    for line in string.gmatch(behind and ok and text .. "\n" or "", "(.-)\n") do
      number = number + 1
      local name, value = string.match(line, "^%s*%-?([^#;%s=][^%s=]*)%s*=(.*)$")
      local setting = name and want[path_of(name)]
      if setting and not same(value, setting.value) then
        error("overridden at each boot by " .. path .. ":" .. number .. ": " .. words(line))
      end
    end
    behind = behind or path == ours
  end
end

local function write_only(path)
  local mode = file.stat(path).mode
  return string.find(mode, "^0*[0-3]%d%d$") ~= nil
end

return script {
  name = "sysctl-profile",
  version = "2.1",
  description = "set kernel parameters, now and at every boot",
  params = {
    name = {type = "string", required = true, pattern = "^%w[%w_.-]*$", description = "the name of the file, without .conf"},
    settings = {type = "map", required = true, description = "values by name, such as net.ipv4.ip_forward"},
    apply = {type = "boolean", default = true, description = "set them now, too"},
  },
  os = {"linux"},
  needs = {
    "file:/etc/", "file:/run/sysctl.d/", "file:/usr/", "file:/lib/sysctl.d/", "file:/lib/systemd/", "file:/proc/sys/",
    "exec:sh",
  },

  run = function(p)
    local names, lines, want = {}, {}, {}
    for name, value in pairs(p.settings) do
      local path = path_of(name)
      if not string.find(name, "^[%w_][%w_./:@+-]*$") or string.find(path .. "/", "/%.*/", #"/proc/sys") then
        error("settings: " .. name .. " is no name of a parameter")
      elseif want[path] then
        error("settings: " .. name .. " and " .. want[path].name .. " are one parameter")
      end
      want[path] = {name = name, path = path, value = text_of(name, value)}
      names[#names + 1] = name
    end
    table.sort(names, function(a, b)
      local first, second = rank(path_of(a)), rank(path_of(b))
      return first < second or first == second and a < b
    end)
    for i, name in ipairs(names) do
      local setting = want[path_of(name)]
      names[i], lines[i] = setting, name .. " = " .. setting.value
    end
    local missing = {}
    for _, setting in ipairs(p.apply and names or {}) do
      if not file.exists(setting.path) then
        missing[#missing + 1] = setting.name
      end
    end
    if #missing > 0 then
      error("settings: this kernel has no " .. table.concat(missing, ", ") ..
        ": no such file below /proc/sys; a module may have to be loaded first, or apply = false")
    end

    local ours = "/etc/sysctl.d/" .. p.name .. ".conf"
    local new = file.write(ours, table.concat(lines, "\n") .. "\n", {mode = "0644", parents = true})
    check_boot(ours, want)
    local result = {changed = new, settings = #names}
    local blind = json.array()
    for _, setting in ipairs(p.apply and names or {}) do
      if write_only(setting.path) then
        blind[#blind + 1] = setting.name
      elseif not same(file.read(setting.path), setting.value) then
        local ok, err = pcall(file.write, setting.path, setting.value .. "\n", {inplace = true}) -- a rollback restores the old value
        if not ok and err.code == "not_found" then
          error("settings: the kernel does not take " .. setting.value .. " for " .. setting.name ..
            ": it has nothing of this name; a module may have to be loaded first")
        elseif not ok then
          error(err, 0)
        end
        result.changed = true
      end
    end
    for _, setting in ipairs(p.apply and names or {}) do -- one may have changed another
      local told = not write_only(setting.path) and file.read(setting.path)
      if told and not same(told, setting.value) then
        error("settings: " .. setting.name .. " is " .. words(told) .. ", not " .. setting.value .. ", which it was set to")
      end
    end
    for _, name in ipairs(new and blind or {}) do -- last, since nothing takes them back
      local setting = want[path_of(name)]
      exec.run({"sh", "-c", 'printf "%s\\n" "$1" > "$2"', "sh", setting.value, setting.path}, {
        irreversible = true, plan = name .. ", which can only be written, is set to " .. setting.value,
      })
    end
    if #blind > 0 then
      result.write_only = blind -- the kernel does not tell whether they are in effect
    end
    return result
  end,
}
