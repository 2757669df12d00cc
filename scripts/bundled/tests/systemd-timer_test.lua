local ENABLED = "/etc/systemd/system/timers.target.wants/backup.timer"
local RUNS = "/run/systemd/backup.timer" -- stands for a timer that runs
file.mkdir("/etc/systemd/system", {parents = true})
file.mkdir("/run/systemd")
test.command("systemctl is-enabled *", {code = 1})
test.command("systemctl is-enabled *", {exists = ENABLED})
test.command("systemctl is-active *", {code = 3})
test.command("systemctl is-active *", {exists = RUNS})
test.command("systemctl enable *", {write = {[ENABLED] = ""}})
test.command("systemctl disable *", {remove = {"/etc/systemd/system/timers.target.wants"}})
test.command("systemctl start *", {write = {[RUNS] = ""}})
test.command("systemctl stop *", {remove = {RUNS}})

local function params(with)
  local p = {name = "backup", command = "/usr/local/bin/backup --all", on_calendar = "daily", activate = true}
  for name, value in pairs(with or {}) do
    p[name] = value
  end
  return p
end

return {
  is_written_enabled_and_started = function()
    local run = test.run(params())
    assert(run.result.changed and file.exists(ENABLED) and file.exists(RUNS))
    assert(file.read("/etc/systemd/system/backup.service"):find("\nExecStart=/usr/local/bin/backup --all\n", 1, true))
    assert(file.read("/etc/systemd/system/backup.timer"):find("\nOnCalendar=daily\n", 1, true))
  end,

  percent_in_a_description_is_text = function()
    test.run(params({description = "warn at 90% full"}))
    for _, unit in ipairs({"service", "timer"}) do
      assert(file.read("/etc/systemd/system/backup." .. unit):find("warn at 90%% full\n", 1, true), unit)
    end
  end,

  is_started_again_at_another_time = function()
    test.run(params())
    local run = test.run(params({on_calendar = "weekly"}))
    assert(run.result.changed and run.commands[#run.commands] == "systemctl restart backup.timer", json.encode(run))
  end,

  runs_nothing_unless_told = function()
    local run = test.run(params({activate = false}))
    assert(run.result.changed and #run.commands == 0)
  end,

  refuses_what_would_be_more_than_a_value = function()
    for name, value in pairs({
      name = "../evil", command = "/bin/true\nExecStartPost=/bin/evil", on_calendar = "daily\n[Service]", user = "a b",
    }) do
      test.run(params({[name] = value}), {fails = name})
    end
  end,

  is_taken_back_when_it_does_not_start = function()
    test.command("systemctl start *", {code = 1})
    local run = test.run(params(), {fails = "exit code 1"})
    assert(run.status == "rolled_back" and not file.exists(ENABLED))
  end,

  survives_a_crash = function()
    test.crash(params())
  end,
}
