for path, content in pairs({
  ["/etc/machine-id"] = "0123\n", ["/etc/ssh/ssh_host_rsa_key"] = "k", ["/etc/ssh/ssh_host_rsa_key.pub"] = "k",
  ["/etc/ssh/sshd_config"] = "Port 22\n", ["/var/log/syslog"] = "a line\n", ["/var/log/syslog.1"] = "old",
  ["/var/log/dpkg.log"] = "x", ["/var/log/journal/0123/system.journal"] = "x", ["/var/lib/apt/lists/deb"] = "x",
  ["/root/.bash_history"] = "passwd", ["/home/me/.bash_history"] = "x", ["/home/me/work"] = "mine",
}) do
  file.write(path, content, {parents = true})
end

return {
  takes_away_what_copies_must_not_have = function()
    local run = test.run(nil, {foretold = true})
    assert(run.result.removed == 7 and run.result.emptied == 3, json.encode(run.result))
    assert(file.read("/etc/machine-id") == "" and file.read("/var/log/dpkg.log") == "")
    assert(file.read("/etc/ssh/sshd_config") == "Port 22\n" and file.read("/home/me/work") == "mine")
    local gone = {"/etc/ssh/ssh_host_rsa_key", "/var/log/syslog.1", "/var/log/journal/0123", "/root/.bash_history"}
    for _, path in ipairs(gone) do
      assert(not file.exists(path), path)
    end
  end,

  leaves_what_it_is_told_to = function()
    test.run({machine_id = false, ssh_host_keys = false, logs = false})
    assert(file.read("/etc/machine-id") == "0123\n" and file.exists("/etc/ssh/ssh_host_rsa_key"))
    assert(file.exists("/var/log/syslog.1") and not file.exists("/root/.bash_history"))
  end,

  survives_a_crash = function()
    test.crash()
  end,
}
