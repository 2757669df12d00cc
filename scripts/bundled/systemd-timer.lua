-- A command that systemd runs on a schedule: NAME.service and NAME.timer below /etc/systemd/system.
--
-- Without activate only the files are written; systemd reads them at the next boot or reload.

local DIR = "/etc/systemd/system/"

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

local function succeeds(...)
  return exec.run({...}, {readonly = true, check = false}).code == 0
end

-- Makes systemd read the files again. It is also called before they are written: undos run newest first, so that a rollback
-- ends with a reload of the restored files.
local function reload(timer)
  exec.run({"systemctl", "daemon-reload"}, {
    undo = {"sh", "-c", "systemctl daemon-reload; systemctl try-restart " .. timer .. " || true"},
  })
end

-- Enables and starts the timer unless it is already; each step has an undo of its own.
local function activate(timer, restart)
  local changed = false
  if not succeeds("systemctl", "is-enabled", "--quiet", timer) then
    exec.run({"systemctl", "enable", timer}, {undo = {"systemctl", "disable", timer}})
    changed = true
  end
  if not succeeds("systemctl", "is-active", "--quiet", timer) then
    exec.run({"systemctl", "start", timer}, {undo = {"systemctl", "stop", timer}})
    changed = true
  elseif restart then
    exec.run({"systemctl", "restart", timer}, {undo = {"systemctl", "try-restart", timer}})
  end
  return changed
end

return script {
  name = "systemd-timer",
  version = "1.0",
  description = "run a command on a schedule, with a systemd timer",
  params = {
    name = {
      type = "string", required = true, pattern = "^%w[%w_.-]*$",
      description = "the name of both units, without .timer",
    },
    command = {
      type = "string", required = true, pattern = "^/[^%c]+$",
      description = "an absolute path with arguments, as ExecStart takes it",
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
  needs = {"file:/etc/systemd/system/", "exec"},

  run = function(p)
    local service, timer = DIR .. p.name .. ".service", p.name .. ".timer"
    local description = (p.description or p.name):gsub("%%", "%%%%") -- systemd reads % as a specifier
    local units = {
      {service, string.format(SERVICE, description, p.user, p.command)},
      {DIR .. timer, string.format(TIMER, description, p.on_calendar, tostring(p.persistent))},
    }
    local new = false
    for _, unit in ipairs(units) do
      new = differs(unit[1], unit[2]) or new
    end
    if new and p.activate then
      reload(timer)
    end
    local changed = false
    for _, unit in ipairs(units) do
      changed = file.write(unit[1], unit[2], {mode = "0644"}) or changed
    end
    if p.activate then
      if new then
        reload(timer)
      end
      changed = activate(timer, new) or changed
    end
    return {changed = changed, service = service, timer = DIR .. timer}
  end,
}
