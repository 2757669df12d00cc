file.write("/proc/sys/net/ipv4/ip_forward", "0\n", {parents = true})
file.write("/proc/sys/net/ipv4/tcp_rmem", "1\t2\t3\n")
local settings = {["net.ipv4.ip_forward"] = 1, ["net.ipv4.tcp_rmem"] = "1 2 3"}

return {
  sets_them_now_and_for_every_boot = function()
    local run = test.run({name = "router", settings = settings}, {foretold = true})
    assert(run.result.changed and run.result.settings == 2)
    assert(file.read("/etc/sysctl.d/router.conf") == "net.ipv4.ip_forward = 1\nnet.ipv4.tcp_rmem = 1 2 3\n")
    assert(file.read("/proc/sys/net/ipv4/ip_forward") == "1\n")
    assert(file.read("/proc/sys/net/ipv4/tcp_rmem") == "1\t2\t3\n")
  end,

  leaves_the_kernel_alone_if_told = function()
    test.run({name = "router", settings = settings, apply = false})
    assert(file.read("/proc/sys/net/ipv4/ip_forward") == "0\n")
  end,

  refuses_what_is_more_than_a_value = function()
    test.run({name = "x", settings = {["net.ipv4.ip_forward"] = "1\nkernel.panic = 1"}}, {fails = "not one line"})
    test.run({name = "x", settings = {["../../etc/passwd"] = "1"}}, {fails = "no name of a parameter"})
    test.run({name = "../x", settings = {}}, {fails = "name must match"})
    test.run({name = "x", settings = {["net.ipv4.none"] = 1}}, {fails = "no such file"})
  end,

  survives_a_crash = function()
    test.crash({name = "router", settings = settings})
  end,
}
