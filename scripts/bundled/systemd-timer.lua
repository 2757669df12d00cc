-- A command that systemd runs on a schedule: NAME.service and NAME.timer below /etc/systemd/system.
--
-- Without activate only the files are written; systemd reads them at the next boot or reload. systemd-analyze looks at them
-- where it is there.

local DIR = "/etc/systemd/system/"
-- Where files beside a unit lie, in UNIT.d.
local PLACES = {
  DIR, "/etc/systemd/system.control/", "/run/systemd/system/", "/run/systemd/system.control/", "/usr/local/lib/systemd/system/",
  "/usr/lib/systemd/system/", "/lib/systemd/system/",
}
local ANALYZE = "/usr/bin/systemd-analyze"
local SHORT = {
  minutely = true, hourly = true, daily = true, weekly = true, monthly = true, quarterly = true, semiannually = true,
  yearly = true, annually = true, anually = true, biannually = true, ["semi-annually"] = true, ["bi-annually"] = true,
}
local DAYS = {"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"}
-- Words that only a shell understands.
local SHELL = {["|"] = true, ["||"] = true, ["&&"] = true, ["&"] = true}
-- The letters of the specifiers that systemd replaces.
local SPECIFIERS = "^[aAbBCdDEfgGhHiIjJlLmMnNoOpPqsStTuUvVwWyYz]"

local SERVICE = [[
[Unit]
Description=%s

[Service]
Type=oneshot
User=%s
ExecStart=%s
]]

local TIMER = [[
[Unit]
Description=Timer of %s

[Timer]
OnCalendar=%s
Persistent=%s

[Install]
WantedBy=timers.target
]]

local function differs(path, content)
  return not file.exists(path) or file.read(path) ~= content
end

local function is_day(word)
  for name in string.gmatch(string.lower(word), "%a+") do
    local known = false
    for _, day in ipairs(DAYS) do
      known = known or name == day or name == string.sub(day, 1, 3)
    end
    if not known then
      return false
    end
  end
  return string.find(word, "^%a[%a,.-]*$") ~= nil
end

-- Whether a schedule has the form of one: days, a date, a time of day and a time zone, each of which may be missing, or one
-- of the short words. What it does not find, systemd-analyze does where there is one.
local function is_schedule(text)
  local at = 0
  for word in string.gmatch(text, "%S+") do
    local kind
    if at == 0 and (SHORT[string.lower(word)] or string.find(word, "^@%d+$")) then
      kind = 3
    elseif is_day(word) then
      kind = 1
    elseif string.find(word, "^[%d*/.,~-]+$") and string.find(word, "[~-]") then
      kind = 2
    elseif string.find(word, "^[%d*/.,:T-]+$") and string.find(word, ":") then
      kind = 3
    elseif string.find(word, "^%u[%w/_+-]*$") and at > 0 then
      kind = 4
    end
    if not kind or kind <= at then
      return false
    end
    at = kind
  end
  return at > 0
end

local function check_schedule(text)
  if not is_schedule(text) then
    error("on_calendar: " .. text .. " is no schedule, such as daily or Mon *-*-* 03:00")
  elseif file.exists(ANALYZE) then
    local run = exec.run({"systemd-analyze", "calendar", "--", text},
      {readonly = true, check = false, plan = "the schedule is read"})
    if run.code ~= 0 then
      error("on_calendar: " .. string.match(run.stderr, "^[^\n]*"))
    elseif string.find(run.stdout, "Next elapse: never", 1, true) then
      error("on_calendar: " .. text .. " is over, and does not come again")
    end
  end
end

-- A command with q in place of all that is quoted in it.
local function bare(text)
  local out, left = "", string.gsub(text, "\\.", "")
  while true do
    local before, quote, rest = string.match(left, "^([^\"']*)([\"'])(.*)$")
    if not quote then
      return out .. left
    end
    local stop = string.find(rest, quote, 1, true)
    if not stop then
      error("command: the " .. quote .. " has no other one that ends it")
    end
    out, left = out .. before .. "q", string.sub(rest, stop + 1)
  end
end

-- systemd replaces %n and the like in a command, so %% stands for a percent sign; it does not start a unit with a % that
-- it does not know.
local function check_command(text)
  local replaced = {}
  for letter in string.gmatch(string.gsub(text, "%%%%", ""), "%%(.?)") do
    if not string.find(letter, SPECIFIERS) then
      error("command: %" .. letter .. " is no specifier of systemd; write %% for a percent sign")
    end
    replaced[#replaced + 1] = "%" .. letter
  end
  if #replaced > 0 then
    log.warn("command: systemd replaces " .. table.concat(replaced, ", ") .. "; %% stands for a percent sign")
  end
  for word in string.gmatch(string.gsub(bare(text), "%$%$", ""), "%S+") do
    if SHELL[word] or string.find(word, "^%d?[<>]") or string.find(word, "`", 1, true) or string.find(word, "$(", 1, true) then
      error("command: systemd starts no shell, to which " .. word .. " means something; give it to one: /bin/sh -c '…'")
    end
  end
  local variables = {}
  for word in string.gmatch(string.gsub(text, "%$%$", ""), "%${[%w_]+}") do
    variables[#variables + 1] = word
  end
  if #variables > 0 then
    log.warn("command: systemd replaces " .. table.concat(variables, ", ") .. "; $$ stands for a dollar sign")
  end
  if string.find(text, "\\%s*$") then
    error("command: it ends in a backslash, which would go on with the next line")
  end
end

-- A text for people, as a unit has it: systemd reads % as a specifier, and a backslash at the end as one that goes on.
local function plain(text)
  return (string.gsub(string.gsub(text, "%%", "%%%%"), "\\$", "\\ "))
end

-- Fails if a file beside a unit sets what the unit does.
local function check_dropins(unit, settings)
  for _, dir in ipairs(PLACES) do
    for _, path in ipairs(file.glob(dir .. unit .. ".d/*.conf")) do
      local ok, text = pcall(file.read, path) -- a link to /dev/null takes a file away
      local number = 0
      for line in string.gmatch(ok and text .. "\n" or "", "(.-)\n") do
        number = number + 1
        local key = string.match(line, "^%s*(%w+)%s*=")
        if key and settings[key] then
          error("overridden by " .. path .. ":" .. number .. ": " .. line)
        end
      end
    end
  end
end

-- Fails if systemd finds a fault in the units. It makes a directory in /tmp meanwhile, so it cannot be told to change nothing.
local function check_units(name)
  local run = exec.run({"systemd-analyze", "verify", DIR .. name .. ".timer", DIR .. name .. ".service"},
    {undo = {"true"}, check = false, plan = "systemd looks at the units"})
  local faults = {}
  for line in string.gmatch(run.stderr, "[^\n]+") do
    local begins = {DIR .. name .. ".timer:", DIR .. name .. ".service:", name .. ".timer:", name .. ".service:"}
    for _, text in ipairs(begins) do
      if string.sub(line, 1, #text) == text then
        if string.find(line, " is not executable: ", 1, true) then
          log.warn(line) -- it may be installed later
        else
          faults[#faults + 1] = line
        end
      end
    end
  end
  if #faults > 0 then
    error(table.concat(faults, "; "))
  end
end

-- Starts a timer that does not run. In an image nothing is started: there it is enabled.
local function start(timer)
  local ok, result = pcall(service.start, timer)
  if ok then
    return result
  elseif result.code == "unsupported" then
    return false
  end
  error(result, 0)
end

-- Enables and starts the timer unless it is already. One that runs with other settings is started again.
local function activate(timer, new)
  if new then
    service.daemon_reload()
  end
  local enabled = service.enable(timer)
  local restart = new and service.status(timer).running
  local started = start(timer)
  if restart then
    tx.notify(timer, "restart")
  end
  return enabled or started
end

return script {
  name = "systemd-timer",
  version = "2.2",
  description = "run a command on a schedule, with a systemd timer",
  params = {
    name = {
      type = "string", required = true, pattern = "^%w[%w_.-]*$",
      description = "the name of both units, without .timer",
    },
    command = {
      type = "string", required = true, pattern = "^/[^%c]+$",
      description = "an absolute path with arguments, as ExecStart takes it: %% stands for a percent sign",
    },
    on_calendar = {
      type = "string", required = true, pattern = "^[^%c]+$",
      description = "the schedule, such as daily or Mon *-*-* 03:00",
    },
    description = {type = "string", pattern = "^[^%c]+$", description = "for people; default: the name"},
    user = {type = "string", default = "root", pattern = "^[%w_][%w_.-]*$", description = "the user that runs the command"},
    persistent = {type = "boolean", default = true, description = "catch up on a run that the machine was off for"},
    activate = {type = "boolean", default = false, description = "enable and start the timer now"},
  },
  os = {"linux"},
  needs = {
    "file:/etc/", "file:/usr/", "file:/run/systemd/", "file:/lib/systemd/", "account", "exec:systemd-analyze",
    "exec:true", "service", "tx",
  },

  run = function(p)
    check_command(p.command)
    check_schedule(p.on_calendar)
    if p.user ~= "root" and not string.find(p.user, "^%d+$") and file.exists("/etc/passwd") and not account.exists(p.user) then
      error("user: there is no user " .. p.user)
    end
    local service, timer = DIR .. p.name .. ".service", p.name .. ".timer"
    local description = plain(p.description or p.name)
    local units = {
      {service, string.format(SERVICE, description, p.user, p.command)},
      {DIR .. timer, string.format(TIMER, description, p.on_calendar, tostring(p.persistent))},
    }
    local new = false
    for _, unit in ipairs(units) do
      new = differs(unit[1], unit[2]) or new
    end
    local changed = false
    for _, unit in ipairs(units) do
      changed = file.write(unit[1], unit[2], {mode = "0644", parents = true}) or changed
    end
    check_dropins(timer, {OnCalendar = true, Persistent = true, Unit = true})
    check_dropins(p.name .. ".service", {ExecStart = true, User = true, Type = true})
    if new and file.exists(ANALYZE) then
      check_units(p.name)
    end
    if p.activate then
      changed = activate(timer, new) or changed
    end
    return {changed = changed, service = service, timer = DIR .. timer}
  end,
}
