local DIR = "/etc/ssh/sshd_config.d/"
local PATH = DIR .. "00-hardening.conf"
local MAIN = "/etc/ssh/sshd_config"
local INCLUDE = "Include /etc/ssh/sshd_config.d/*.conf\n"
file.write(MAIN, INCLUDE, {parents = true})
file.mkdir(DIR, {parents = true})

-- What sshd -T tells when all is as it is asked for.
local EFFECT = "permitrootlogin without-password\npasswordauthentication no\nkbdinteractiveauthentication no\n" ..
  "permitemptypasswords no\nmaxauthtries 3\nx11forwarding no\n"

-- Each of the files must make the script fail, with the text in its error.
local function refused(files, text, params)
  for path, content in pairs(files) do
    file.write(path, content, {parents = true})
  end
  test.run(params, {fails = text})
  for path in pairs(files) do
    file.remove(path)
  end
  file.write(MAIN, INCLUDE)
end

return {
  is_seen_before_the_server_hears_of_it = function()
    test.command("sh -c *sshd -T", {stdout = EFFECT .. "allowgroups admin\nallowgroups ops\n"})
    local run = test.run({allow_groups = {"admin", "ops"}}, {foretold = true})
    assert(run.result.changed)
    local text = file.read(PATH)
    assert(text:find("PasswordAuthentication no\n", 1, true) and text:find("AllowGroups admin ops\n", 1, true), text)
    assert(#run.commands == 1 and run.commands[1]:find("sshd %-T$"), run.commands[1])
  end,

  leaves_a_server_alone_that_does_not_run = function()
    local run = test.run()
    assert(not run.result.reloaded and run.result.note:find("until it starts again") and #run.commands == 1)
    assert(file.exists(PATH))
  end,

  is_taken_back_when_sshd_refuses_it = function()
    file.write(PATH, "MaxAuthTries 9\n")
    test.command("sh -c *", {code = 255, stderr = "line 1: bad"})
    test.run(nil, {fails = "line 1: bad"})
    assert(file.read(PATH) == "MaxAuthTries 9\n")
  end,

  is_taken_back_when_sshd_would_do_something_else = function()
    test.command("sh -c *", {stdout = (EFFECT:gsub("passwordauthentication no", "passwordauthentication yes"))})
    test.run(nil, {fails = "sshd has passwordauthentication yes, not no"})
    test.command("sh -c *", {stdout = EFFECT})
    test.run({allow_groups = {"admin"}}, {fails = "sshd has allowgroups "})
  end,

  does_not_lock_everybody_out = function()
    local without = EFFECT .. "pubkeyauthentication no\nhostbasedauthentication no\n"
    test.command("sh -c *", {stdout = without .. "gssapiauthentication no\n"})
    test.run(nil, {fails = "nobody could log in"})
    test.command("sh -c *", {stdout = without .. "gssapiauthentication yes\n"})
    test.run()
  end,

  asks_for_each_match_block = function()
    file.write(MAIN, INCLUDE .. "Match User git,!root Address 10.0.0.0/8\nX11Forwarding no\nMATCH all\n  MaxAuthTries 2\n")
    test.command("sh -c *", {stdout = EFFECT})
    local run = test.run()
    assert(run.commands[2]:find("-C user=git,host=192.0.2.1,addr=10.0.0.0,laddr=", 1, true), run.commands[2])
    assert(run.commands[3]:find("-C user=root,", 1, true), run.commands[3])
    file.remove(PATH)
    test.command("sh -c *user=git,*", {stdout = (EFFECT:gsub("root%S* %S+", "rootlogin yes"))})
    test.run(nil, {fails = "for " .. MAIN .. ":2: Match User git,!root Address 10.0.0.0/8: sshd has permitrootlogin yes"})
  end,

  without_a_block_for_a_port_another_one_is_asked_for = function()
    file.write(MAIN, INCLUDE .. "Match LocalPort 6875\nX11Forwarding no\nMatch User a LocalPort=65535\nX11Forwarding no\n")
    local run = test.run()
    assert(run.commands[1]:find("%-T %-C lport=65534$") and run.commands[2]:find(",lport=6875", 1, true), run.commands[1])
  end,

  a_group_is_asked_for_by_a_member = function()
    file.write("/etc/group", "root:x:0:\nsftp:x:7:carl\nwheel:x:8:\n")
    file.write("/etc/passwd", "root:x:0:0::/:/bin/sh\nwanda:x:8:8::/:/bin/sh\n")
    file.write(MAIN, INCLUDE .. "Match Group sftp\nX11Forwarding no\nMatch group w*,!x\nX11Forwarding no\n")
    local run = test.run()
    assert(run.commands[2]:find("-C user=carl,", 1, true) and run.commands[3]:find("-C user=wanda,", 1, true))
  end,

  names_what_overrides_it = function()
    refused({[MAIN] = "PasswordAuthentication yes\n" .. INCLUDE}, MAIN .. ":1: PasswordAuthentication yes")
    refused({[MAIN] = "\tPASSWORDAUTHENTICATION = YES \r\n" .. INCLUDE}, MAIN .. ":1: PASSWORDAUTHENTICATION")
    refused({[MAIN] = '"PermitRootLogin" "yes"\n' .. INCLUDE}, MAIN .. ":1: ")
    refused({[MAIN] = "ChallengeResponseAuthentication=yes\n" .. INCLUDE}, MAIN .. ":1: Challenge")
    refused({[MAIN] = INCLUDE .. "Match User x\nPasswordAuthentication yes\n"},
      MAIN .. ":3: PasswordAuthentication yes (Match User x)")
    refused({[MAIN] = INCLUDE .. "match=all\nMaxAuthTries 9\n"}, "MaxAuthTries 9 (match=all)")
    refused({[MAIN] = INCLUDE .. "AllowGroups wheel\n"}, "AllowGroups wheel", {allow_groups = {"admin"}})
    refused({[DIR .. "00-a.conf"] = "MaxAuthTries 9\n"}, DIR .. "00-a.conf:1: MaxAuthTries 9")
    refused({[DIR .. "99-z.conf"] = "Match all\nX11Forwarding yes\n"}, DIR .. "99-z.conf:2: X11Forwarding yes")
    refused({["/etc/default/ssh"] = 'SSHD_OPTS="-4 -o PasswordAuthentication=yes"\n'},
      "/etc/default/ssh: PasswordAuthentication")
    refused({["/etc/sysconfig/sshd"] = "OPTIONS='-f /etc/other'\n"}, "does not read /etc/ssh/sshd_config")
  end,

  bears_what_is_the_same_or_stricter_or_later = function()
    file.write(MAIN, "PermitRootLogin without-password\nMaxAuthTries 03\n" .. INCLUDE ..
      "PasswordAuthentication yes\nMatch User git\nPermitRootLogin no\nMaxAuthTries 1\n")
    file.write(DIR .. "50-cloud-init.conf", "PasswordAuthentication yes\n")
    file.write(DIR .. ".hidden.conf", "Match all\nPasswordAuthentication yes\n") -- no wildcard means it
    file.write(DIR .. "10-match.conf", "Match User x\n") -- ends with its file
    assert(test.run().result.changed)
  end,

  knows_an_include_however_it_is_written = function()
    for _, line in ipairs({
      "Include sshd_config.d/*.conf", 'Include "/etc/ssh/sshd_config.d/*.conf"', "INCLUDE=sshd_config.d/*.conf # as it was",
      "  include\t/opt/none/*.conf sshd_config.d/0[0-9]-*.conf", "Include sshd_config.d/[!a]*.conf", "include nested",
      "Include ../ssh//./sshd_config.d/*.conf", "Include /opt/dropins/*.conf",
    }) do
      file.symlink("/etc/ssh/sshd_config.d", "/opt/dropins")
      file.write("/etc/ssh/nested", INCLUDE)
      file.write(MAIN, "UsePAM yes\n" .. line .. "\n")
      assert(test.run().result.changed, line)
      file.remove(PATH)
    end
    file.remove(MAIN)
    file.write("/usr/etc/ssh/sshd_config", INCLUDE, {parents = true}) -- openSUSE
    assert(test.run().result.changed)
  end,

  refuses_what_would_not_be_read = function()
    test.run({allow_groups = {"a b"}}, {fails = "is no group"})
    refused({[MAIN] = "Port 22\n"}, MAIN .. " does not include " .. PATH)
    refused({[MAIN] = "# " .. INCLUDE}, "does not include")
    refused({[MAIN] = "Include sshd_config.d/[!0]*.conf\n"}, "does not include")
    refused({[MAIN] = "Match User root\n" .. INCLUDE}, "below Match User root only")
    refused({[MAIN] = "Include " .. MAIN .. "\n"}, "does not include files to this depth")
  end,

  survives_a_crash = function()
    test.crash()
  end,
}
