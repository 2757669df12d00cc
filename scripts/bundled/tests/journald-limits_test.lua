local PATH = "/etc/systemd/journald.conf.d/50-limits.conf"

return {
  are_set = function()
    local run = test.run({max_use = "200M"}, {foretold = true})
    assert(run.result.changed and run.commands[2] == "systemctl try-restart systemd-journald.service")
    assert(file.read(PATH) == "[Journal]\nSystemMaxUse=200M\nSystemKeepFree=1G\nMaxRetentionSec=1month\n")
  end,

  are_read_again_after_a_rollback = function()
    test.command("systemctl try-restart *", {code = 1})
    local run = test.run(nil, {fails = "exit code 1"})
    assert(run.commands[#run.commands] == "undo: systemctl try-restart systemd-journald.service")
  end,

  are_not_overridden = function()
    local function overridden(path, text, says)
      file.write(path, text, {parents = true})
      test.run(nil, {fails = "overridden by " .. path .. says})
      file.remove(path)
    end
    overridden("/etc/systemd/journald.conf.d/99-mine.conf", "# x\n[Journal]\n SystemMaxUse = 4G \n", ":3: SystemMaxUse=4G")
    overridden("/usr/lib/systemd/journald.conf.d/60-vendor.conf", "[Journal]\nMaxRetentionSec=\n", ":2: MaxRetentionSec=")
    test.run({activate = false})
    overridden("/run/systemd/journald.conf.d/99-x.conf", "[Journal]\nSystemKeepFree=1M\n", ":2: SystemKeepFree=1M")
    for path, text in pairs({
      ["/etc/systemd/journald.conf.d/10-mine.conf"] = "[Journal]\nSystemMaxUse=4G\n",
      ["/usr/lib/systemd/journald.conf.d/50-limits.conf"] = "[Journal]\nSystemMaxUse=4G\n",
      ["/etc/systemd/journald.conf.d/60-a.conf"] = "[Journal]\nSystemMaxUse=500M\n#SystemMaxUse=4G\n[Other]\nSystemMaxUse=4G\n",
      ["/usr/lib/systemd/journald.conf.d/70-gone.conf"] = "[Journal]\nSystemMaxUse=4G\n",
    }) do
      file.write(path, text, {parents = true})
    end
    file.symlink("/dev/null", "/etc/systemd/journald.conf.d/70-gone.conf")
    assert(not test.run().result.changed)
  end,

  are_taken_back_when_the_journal_does_not_come_back = function()
    local UP = "/run/up" -- stands for a journal that runs
    file.write(UP, "1")
    test.command("systemctl is-active *", {code = 3})
    test.command("systemctl is-active *", {exists = UP})
    test.command("systemctl try-restart *", {write = {[UP] = "1"}})
    test.command("systemctl try-restart *", {exists = PATH, remove = {UP}})
    test.run(nil, {fails = "does not run any more"})
  end,

  have_units_that_there_are = function()
    for _, age in ipairs({"0", "30", "2week", "1M", "90days"}) do
      test.run({max_age = age, activate = false})
    end
    test.run({max_age = "1fortnight"}, {fails = "fortnight is no unit of time"})
  end,

  restart_nothing_in_an_image = function()
    test.command("systemctl *", {code = 1})
    assert(#test.run().commands == 1 and file.exists(PATH))
  end,

  wait_for_the_next_start_if_told = function()
    assert(#test.run({activate = false}).commands == 0)
  end,

  survive_a_crash = function()
    test.crash()
  end,
}
