local ENABLED = "/etc/systemd/system/timers.target.wants/backup.timer"
file.mkdir("/etc/systemd/system", {parents = true})
file.write("/usr/lib/systemd/system/timers.target", "[Unit]\n", {parents = true}) -- systemd is installed

local function params(with)
  local p = {name = "backup", command = "/usr/local/bin/backup --all", on_calendar = "daily", activate = true}
  for name, value in pairs(with or {}) do
    p[name] = value
  end
  return p
end

return {
  is_written_and_enabled = function()
    local run = test.run(params())
    assert(run.result.changed and file.exists(ENABLED) and #run.commands == 0) -- nothing is started in an image
    assert(file.read("/etc/systemd/system/backup.service"):find("\nExecStart=/usr/local/bin/backup --all\n", 1, true))
    assert(file.read("/etc/systemd/system/backup.timer"):find("\nOnCalendar=daily\n", 1, true))
  end,

  percent_in_a_description_is_text = function()
    test.run(params({description = "warn at 90% full"}))
    for _, unit in ipairs({"service", "timer"}) do
      assert(file.read("/etc/systemd/system/backup." .. unit):find("warn at 90%% full\n", 1, true), unit)
    end
  end,

  text_for_people_stays_as_it_is = function()
    for text, written in pairs({
      ["100%"] = "100%%", ["%n 50%% off"] = "%%n 50%%%% off", ["C:\\"] = "C:\\ ", ["a # b; c"] = "a # b; c",
    }) do
      test.run(params({description = text}))
      local unit = file.read("/etc/systemd/system/backup.service")
      assert(unit:find("\nDescription=" .. written .. "\n", 1, true), unit)
    end
  end,

  refuses_a_percent_sign_that_systemd_would_not_start = function()
    for command, says in pairs({
      ["/bin/date +%F"] = "command: %F is no specifier", ["/bin/x 100%"] = "command: % is no specifier",
      ["/bin/x %%%Q"] = "command: %Q", ["/bin/x \\"] = "ends in a backslash",
    }) do
      test.run(params({command = command}), {fails = says})
    end
    assert(#test.run(params({command = "/bin/date +%%F"})).log == 0)
    assert(test.run(params({command = "/bin/x %n %%m"})).log[1]:find("replaces %n;", 1, true))
  end,

  refuses_what_only_a_shell_understands = function()
    for command, word in pairs({
      ["/bin/x | /bin/y"] = "|", ["/bin/x >/var/log/x 2>&1"] = ">/var/log/x", ["/bin/x && /bin/y"] = "&&", ["/bin/x 2> y"] = "2>",
      ["/bin/x < y"] = "<", ["/bin/x 'a b' >> y"] = ">>",
      ["/bin/x --at=$(date) y"] = "--at=$(date)", ["/bin/x `date`"] = "`date`",
    }) do
      test.run(params({command = command}), {fails = "no shell, to which " .. word .. " means"})
    end
    assert(#test.run(params({command = "/bin/sh -c 'x | y > z && \"a\" $f $${g}' \"a | b\" a\\'b"})).log == 0)
    for _, command in ipairs({"/bin/sh -c 'x \"$(y) `z`' \"it's\"", "/bin/x $$(y)"}) do
      assert(#test.run(params({command = command})).log == 0)
    end
    assert(test.run(params({command = "/bin/sh -c 'for f in *; do echo ${f}; done'"})).log[1]:find("replaces ${f};", 1, true))
  end,

  refuses_a_quotation_that_does_not_end = function()
    for command, quote in pairs({["/bin/x it's"] = "'", ['/bin/x "a'] = '"', ["/bin/x 'a \"b\" c"] = "'"}) do
      test.run(params({command = command}), {fails = "the " .. quote .. " has no other one"})
    end
  end,

  takes_schedules_only = function()
    for _, text in ipairs({
      "daily", "Semi-annually", "Weekly UTC", "Mon *-*-* 03:00", "Mon..Fri 10:00", "Sat,Thu,Mon..Wed,Sat..Sun", "*:0/15",
      "*-*~07/1 12..14:10,20",
      "2099-03-05 05:40:23.42 Europe/Vienna", "monday *-05-03", "@4102444800",
    }) do
      assert(test.run(params({on_calendar = text}), {again = false}).result.changed, text)
    end
    for _, text in ipairs({
      "whenever", "0 3 * * *", "every day", "5", "%H:00", "03:00 Mon", "Mon Mon", "daily daily", " ", "03:00 \\",
    }) do
      test.run(params({on_calendar = text}), {fails = "is no schedule"})
    end
  end,

  are_looked_at_by_systemd = function()
    file.write("/usr/bin/systemd-analyze", "")
    test.command("systemd-analyze verify *", {code = 1, stderr = "other.service: is bad\n" ..
      "backup.service: Command /usr/local/bin/backup is not executable: No\n"})
    local run = test.run(params({activate = false}))
    assert(run.commands[1] == "systemd-analyze calendar -- daily")
    assert(run.commands[2]:find("verify /etc/systemd/system/backup.timer"))
    assert(run.log[1]:find("is not executable", 1, true))
    file.remove("/etc/systemd/system/backup.timer")
    test.command("systemd-analyze verify *",
      {stderr = "/etc/systemd/system/backup.service:2: Failed to resolve\nbackup.timer: Refusing.\n"})
    test.run(params(), {fails = "backup.service:2: Failed to resolve; backup.timer: Refusing."})
    test.command("systemd-analyze calendar *", {code = 1, stderr = "Failed to parse\nx"})
    test.run(params({on_calendar = "*-*-40"}), {fails = "on_calendar: Failed to parse"})
    test.command("systemd-analyze calendar *", {stdout = "    Next elapse: never\n"})
    test.run(params({on_calendar = "2020-01-01"}), {fails = "does not come again"})
  end,

  is_not_overridden = function()
    local function overridden(path, text, says)
      file.write(path, text, {parents = true})
      test.run(params(), {fails = "overridden by " .. path .. says})
      file.write(path, "# nothing\n[Service]\nNice=5\n")
    end
    overridden("/etc/systemd/system/backup.timer.d/x.conf", "[Timer]\nOnCalendar=\n", ":2: OnCalendar=")
    overridden("/usr/lib/systemd/system/backup.service.d/x.conf", "[Service]\n ExecStart = /bin/x\n", ":2:  ExecStart = /bin/x")
    test.run(params())
  end,

  runs_as_a_user_who_is_there = function()
    test.run(params({user = "backup"}), {fails = "there is no user backup"})
    file.append("/etc/passwd", "backup:x:34:34::/:/bin/sh\n")
    test.run(params({user = "backup"}))
    assert(file.read("/etc/systemd/system/backup.service"):find("\nUser=backup\n"))
  end,

  is_enabled_once = function()
    test.run(params())
    local run = test.run(params({on_calendar = "weekly"}))
    assert(run.result.changed and file.exists(ENABLED))
  end,

  runs_nothing_unless_told = function()
    local run = test.run(params({activate = false}))
    assert(run.result.changed and not file.exists(ENABLED) and #run.commands == 0)
  end,

  refuses_what_would_be_more_than_a_value = function()
    for name, value in pairs({
      name = "../evil", command = "/bin/true\nExecStartPost=/bin/evil", on_calendar = "daily\n[Service]", user = "a b",
    }) do
      test.run(params({[name] = value}), {fails = name})
    end
  end,

  survives_a_crash = function()
    test.crash(params())
  end,
}
