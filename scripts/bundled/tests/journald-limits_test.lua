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
