local HEAD = "Filename Type Size Used Priority\n"
local FSTAB = "/dev/vda1 / ext4 defaults 0 1\n"
local ON = HEAD .. "/swapfile file 4096 0 -2\n"
file.write("/etc/fstab", FSTAB)
file.write("/proc/swaps", HEAD, {parents = true})
test.command("sh -ec *mkswap*", {write = {["/swapfile"] = ("\0"):rep(4086) .. "SWAPSPACE2"}})
test.command("swapon *", {write = {["/proc/swaps"] = ON}})
test.command("sh -c *swapoff*", {write = {["/proc/swaps"] = HEAD}})
test.command("sh -c *-ef*", {stdout = "other\n"})

-- Makes /data a link to /mnt/data, with a swap in it that is in use.
local function linked()
  file.mkdir("/mnt/data", {parents = true})
  file.symlink("../mnt/data", "/opt/data")
  file.write("/mnt/data/swapfile", "mine", {mode = "0600"})
  file.write("/proc/swaps", HEAD .. "/mnt/data/swapfile file 4096 0 -2\n")
end

return {
  is_made_and_used = function()
    local run = test.run({size_mib = 4}, {foretold = true})
    assert(run.result.changed and run.result.in_use and #run.commands == 2)
    assert(file.read("/etc/fstab") == FSTAB .. "/swapfile none swap sw 0 0\n")
    assert(file.read("/swapfile"):find("SWAPSPACE2$"))
  end,

  is_used_if_it_is_there = function()
    file.write("/swapfile", "mine")
    local run = test.run()
    assert(run.result.changed and run.commands[1] == "swapon /swapfile")
    assert(file.stat("/swapfile").mode == "0600" and file.read("/swapfile") == "mine")
    assert(run.result.note == "the file is there with 0 MiB, and keeps its size")
    file.write("/swapfile", ("x"):rep(2^20))
    assert(test.run({size_mib = 1}).result.note == nil)
  end,

  is_gone_when_it_cannot_be_used = function()
    test.command("swapon *", {code = 255, stderr = "no"})
    test.run(nil, {fails = "exit code 255"})
    assert(not file.exists("/swapfile"))
    test.command("swapon *", {})
    test.command("echo *", {stdout = "no\n"})
    test.run(nil, {fails = "is not in use"})
  end,

  is_known_by_any_name = function()
    linked()
    file.write("/etc/fstab", "/opt/data/swapfile\tnone  swap\tsw,pri=5 0 0 # mine\n")
    for _, path in ipairs({"/mnt/data/swapfile", "/opt/data/swapfile", "/mnt/../opt//./data/swapfile"}) do
      local run = test.run({path = path})
      assert(not run.result.changed and run.result.in_use and #run.commands == 0, path)
    end
    file.symlink("/mnt/data/swapfile", "/swap")
    assert(not test.run({path = "/swap"}).result.changed)
    test.command("sh -c *-ef*", {}) -- a file with two names
    file.write("/opt/second", "mine", {mode = "0600"})
    file.write("/etc/fstab", "/opt/second none swap sw 0 0\n")
    assert(not test.run({path = "/opt/second"}).result.changed)
  end,

  what_was_in_use_stays_so = function()
    linked()
    file.chmod("/etc/fstab", "0600")
    local run = test.run({path = "/opt/data/swapfile"})
    assert(run.result.changed and file.stat("/etc/fstab").mode == "0600")
    assert(file.read("/etc/fstab") == FSTAB .. "/mnt/data/swapfile none swap sw 0 0\n" and #run.commands == 0)
    file.write("/opt/other", "x")
    test.command("swapon *", {code = 255, stderr = "busy"})
    test.command("sh -c *swapoff*", {})
    run = test.run({path = "/opt/other"}, {fails = "busy"})
    assert(run.commands[#run.commands]:find(" sh /opt/other /opt/other$"), run.commands[#run.commands])
  end,

  is_used_at_every_boot = function()
    for before, after in pairs({
      ["/swapfile none swap noauto 0 0\n"] = "/swapfile none swap sw 0 0\n",
      ["/swapfile /mnt ext4 loop 0 0\nnone /x tmpfs\n"] = "/swapfile none swap sw 0 0\nnone /x tmpfs\n",
      ["# /swapfile none swap sw 0 0"] = "# /swapfile none swap sw 0 0\n/swapfile none swap sw 0 0\n",
    }) do
      file.write("/etc/fstab", before)
      assert(test.run({size_mib = 4}).result.changed)
      assert(file.read("/etc/fstab") == after, file.read("/etc/fstab"))
    end
  end,

  is_not_used_in_an_image = function()
    file.remove("/proc", {recursive = true})
    local run = test.run({size_mib = 4})
    assert(run.result.changed and not run.result.in_use and #run.commands == 1)
  end,

  is_not_taken_for_something_else = function()
    file.mkdir("/opt/dir")
    test.run({path = "/opt/dir"}, {fails = "is a directory"})
    file.symlink("loop", "/opt/loop")
    test.run({path = "/opt/loop"}, {fails = "too many symbolic links"})
  end,

  survives_a_crash = function()
    test.crash({size_mib = 4})
  end,
}
