-- Limits of the disk space that systemd's journal may take.

local DIR = "/etc/systemd/journald.conf.d/"
local PATH = DIR .. "50-limits.conf"
local UNIT = "systemd-journald"
-- Where files with settings lie. Of two files of one name, that of the first directory counts; all are read in the order of
-- their names, and the last value of a setting counts.
local PLACES = {
  DIR, "/run/systemd/journald.conf.d/", "/usr/local/lib/systemd/journald.conf.d/", "/usr/lib/systemd/journald.conf.d/",
  "/lib/systemd/journald.conf.d/",
}
local UNITS = {}
for unit in string.gmatch("us usec ms msec s sec second seconds m min minute minutes h hr hour hours d day days " ..
  "w week weeks M month months y year years", "%a+") do
  UNITS[unit] = true
end

-- Whether the journal runs. In an image nothing does, and a guest may have none.
local function active()
  local ok, status = pcall(service.status, UNIT)
  if ok then
    return status.running
  elseif status.code == "not_found" or status.code == "unsupported" then
    return false
  end
  error(status, 0)
end

-- Fails if a later file has another value of a setting than ours.
local function check_others(want)
  local names, of = {}, {}
  for _, dir in ipairs(PLACES) do
    for _, path in ipairs(file.glob(dir .. "*.conf")) do
      local name = string.match(path, "[^/]*$")
      if not of[name] then
        names[#names + 1], of[name] = name, path
      end
    end
  end
  table.sort(names)
  local behind = false
  for _, name in ipairs(names) do
    local ok, text = pcall(file.read, of[name]) -- a link to /dev/null takes a file away
    local section, number = "", 0
    for line in string.gmatch(behind and ok and text .. "\n" or "", "(.-)\n") do
      number = number + 1
      section = string.match(line, "^%s*%[(.-)%]") or section
      local key, value = string.match(line, "^%s*(%w+)%s*=%s*(.-)%s*$")
      if key and section == "Journal" and want[key] and value ~= want[key] then
        error("overridden by " .. of[name] .. ":" .. number .. ": " .. key .. "=" .. value)
      end
    end
    behind = behind or of[name] == PATH
  end
end

return script {
  name = "journald-limits",
  version = "2.1",
  description = "limit the size and the age of systemd's journal",
  params = {
    max_use = {type = "string", default = "500M", pattern = "^%d+[KMGT]?$", description = "the most disk space that it takes"},
    keep_free = {type = "string", default = "1G", pattern = "^%d+[KMGT]?$", description = "the disk space that it leaves free"},
    max_age = {type = "string", default = "1month", pattern = "^%d+%a*$", description = "the greatest age of its entries"},
    activate = {type = "boolean", default = true, description = "restart the journal now, if it runs"},
  },
  os = {"linux"},
  needs = {
    "file:/etc/systemd/journald.conf.d/", "file:/run/systemd/journald.conf.d/", "file:/usr/", "file:/lib/systemd/",
    "service:systemd-journald", "tx",
  },

  run = function(p)
    local unit = string.match(p.max_age, "%a*$")
    if unit ~= "" and not UNITS[unit] then
      error("max_age: " .. unit .. " is no unit of time, such as day or month")
    end
    local want = {SystemMaxUse = p.max_use, SystemKeepFree = p.keep_free, MaxRetentionSec = p.max_age}
    local text = table.concat({
      "[Journal]", "SystemMaxUse=" .. p.max_use, "SystemKeepFree=" .. p.keep_free, "MaxRetentionSec=" .. p.max_age, "",
    }, "\n")
    if file.exists(PATH) and file.read(PATH) == text then
      check_others(want)
      return {changed = false, path = PATH}
    end
    file.write(PATH, text, {mode = "0644", parents = true})
    check_others(want)
    local runs = p.activate and active()
    if runs then
      tx.notify(UNIT, "restart")
    end
    return {changed = true, path = PATH, activated = runs}
  end,
}
