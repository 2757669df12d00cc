local HEAD = "Filename Type Size Used Priority\n"
file.write("/etc/fstab", "/dev/vda1 / ext4 defaults 0 1\n")
file.write("/proc/swaps", HEAD, {parents = true})
test.command("sh -ec *mkswap*", {write = {["/swapfile"] = ("\0"):rep(4086) .. "SWAPSPACE2"}})
test.command("swapon *", {write = {["/proc/swaps"] = HEAD .. "/swapfile file 4096 0 -2\n"}})
test.command("swapoff *", {write = {["/proc/swaps"] = HEAD}})

return {
  is_made_and_used = function()
    local run = test.run({size_mib = 4}, {foretold = true})
    assert(run.result.changed and #run.commands == 2)
    assert(file.read("/etc/fstab") == "/dev/vda1 / ext4 defaults 0 1\n/swapfile none swap sw 0 0\n")
    assert(file.read("/swapfile"):find("SWAPSPACE2$"))
  end,

  is_used_if_it_is_there = function()
    file.write("/swapfile", "mine")
    local run = test.run()
    assert(run.result.changed and #run.commands == 1 and run.commands[1] == "swapon /swapfile")
  end,

  is_gone_when_it_cannot_be_used = function()
    test.command("swapon *", {code = 255, stderr = "no"})
    test.run(nil, {fails = "exit code 255"})
    assert(not file.exists("/swapfile"))
  end,

  survives_a_crash = function()
    test.crash({size_mib = 4})
  end,
}
