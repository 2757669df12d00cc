local PATH = "/etc/ssh/sshd_config.d/00-hardening.conf"
file.write("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n", {parents = true})

return {
  is_tested_before_the_server_hears_of_it = function()
    local run = test.run({allow_groups = {"admin", "ops"}}, {foretold = true})
    assert(run.result.changed and run.result.reloaded)
    local text = file.read(PATH)
    assert(text:find("PasswordAuthentication no\n", 1, true) and text:find("AllowGroups admin ops\n", 1, true), text)
    assert(run.commands[2] == "sshd -t" and run.commands[3] == "systemctl try-reload-or-restart ssh.service")
  end,

  leaves_a_server_alone_that_does_not_run = function()
    test.command("systemctl is-active *", {code = 3})
    local run = test.run()
    assert(not run.result.reloaded and #run.commands == 2 and file.exists(PATH))
  end,

  is_taken_back_when_sshd_refuses_it = function()
    file.write(PATH, "MaxAuthTries 9\n", {parents = true})
    test.command("sshd -t", {code = 255, stderr = "line 1: bad"})
    local run = test.run(nil, {fails = "line 1: bad"})
    assert(run.commands[3] == "undo: systemctl try-reload-or-restart ssh.service")
  end,

  refuses_what_would_not_be_read = function()
    test.run({allow_groups = {"a b"}}, {fails = "is no group"})
    file.write("/etc/ssh/sshd_config", "Port 22\n")
    test.run(nil, {fails = "does not include"})
  end,

  survives_a_crash = function()
    test.crash()
  end,
}
