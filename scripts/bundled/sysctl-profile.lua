-- Kernel parameters: for every boot in /etc/sysctl.d, and now.

-- "net.ipv4.ip_forward" is /proc/sys/net/ipv4/ip_forward; a slash in a name means a dot.
local function path_of(name)
  local path = string.gsub(name, "[./]", {["."] = "/", ["/"] = "."})
  return "/proc/sys/" .. path
end

local function words(text)
  local list = {}
  for word in string.gmatch(text, "%S+") do
    list[#list + 1] = word
  end
  return table.concat(list, " ")
end

return script {
  name = "sysctl-profile",
  version = "1.0",
  description = "set kernel parameters, now and at every boot",
  params = {
    name = {type = "string", required = true, pattern = "^%w[%w_.-]*$", description = "the name of the file, without .conf"},
    settings = {type = "map", required = true, description = "values by name, such as net.ipv4.ip_forward"},
    apply = {type = "boolean", default = true, description = "set them now, too"},
  },
  needs = {"file:/etc/sysctl.d/", "file:/proc/sys/"},

  run = function(p)
    local names, lines = {}, {}
    for name, value in pairs(p.settings) do
      if not string.find(name, "^[%w_][%w_./-]*$") or string.find(name, "..", 1, true) then
        error("settings: " .. name .. " is no name of a parameter")
      end
      if type(value) == "table" or string.find(tostring(value), "%c") then
        error("settings: the value of " .. name .. " is not one line of text or a number")
      end
      names[#names + 1] = name
    end
    table.sort(names)
    for _, name in ipairs(names) do
      lines[#lines + 1] = name .. " = " .. tostring(p.settings[name])
    end
    local changed = file.write("/etc/sysctl.d/" .. p.name .. ".conf", table.concat(lines, "\n") .. "\n",
      {mode = "0644", parents = true})
    if p.apply then
      for _, name in ipairs(names) do
        local path, value = path_of(name), words(tostring(p.settings[name]))
        if words(file.read(path)) ~= value then
          file.write(path, value .. "\n", {inplace = true}) -- a rollback restores the old value
          changed = true
        end
      end
    end
    return {changed = changed, settings = #names}
  end,
}
