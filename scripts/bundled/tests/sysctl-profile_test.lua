file.write("/proc/sys/net/ipv4/ip_forward", "0\n", {parents = true})
file.write("/proc/sys/net/ipv4/tcp_rmem", "1\t2\t3\n")
file.write("/proc/sys/net/ipv4/route/flush", "", {parents = true, mode = "0200"})
file.write("/proc/sys/net/ipv4/conf/eth0.100/forwarding", "0\n", {parents = true})
file.write("/proc/sys/fs/file-max", "1\n", {parents = true})
local settings = {["net.ipv4.ip_forward"] = 1, ["net.ipv4.tcp_rmem"] = "1 2 3"}
local CONF = "/etc/sysctl.d/x.conf"

-- Runs with these settings; gives what the file of each boot has.
local function conf(list)
  file.remove(CONF)
  test.run({name = "x", settings = list}, {foretold = true})
  return file.read(CONF)
end

return {
  sets_them_now_and_for_every_boot = function()
    local run = test.run({name = "router", settings = settings}, {foretold = true})
    assert(run.result.changed and run.result.settings == 2)
    assert(file.read("/etc/sysctl.d/router.conf") == "net.ipv4.ip_forward = 1\nnet.ipv4.tcp_rmem = 1 2 3\n")
    assert(file.read("/proc/sys/net/ipv4/ip_forward") == "1\n")
    assert(file.read("/proc/sys/net/ipv4/tcp_rmem") == "1\t2\t3\n")
  end,

  leaves_the_kernel_alone_if_told = function()
    test.run({name = "router", settings = {["net.ipv4.ip_forward"] = 1, ["net.ipv4.none"] = 2}, apply = false})
    assert(file.read("/proc/sys/net/ipv4/ip_forward") == "0\n")
  end,

  knows_names_with_slashes = function()
    assert(conf({["net/ipv4/ip_forward"] = 1}) == "net/ipv4/ip_forward = 1\n")
    assert(file.read("/proc/sys/net/ipv4/ip_forward") == "1\n")
    conf({["net.ipv4.conf.eth0/100.forwarding"] = 1})
    assert(file.read("/proc/sys/net/ipv4/conf/eth0.100/forwarding") == "1\n")
    conf({["net/ipv4/conf/eth0.100/forwarding"] = 2})
    assert(file.read("/proc/sys/net/ipv4/conf/eth0.100/forwarding") == "2\n")
    test.run({name = "x", settings = {["net/ipv4/ip_forward"] = 1, ["net.ipv4.ip_forward"] = 0}}, {fails = "are one parameter"})
  end,

  what_sets_others_goes_first = function()
    file.write("/proc/sys/net/ipv6/conf/all/forwarding", "0\n", {parents = true})
    for _, name in ipairs({"all", "default", "A1"}) do
      file.write("/proc/sys/net/ipv4/conf/" .. name .. "/accept_redirects", "0\n", {parents = true})
    end
    local got = conf({
      ["net.ipv4.conf.A1.accept_redirects"] = 1, ["net/ipv4/conf/all/accept_redirects"] = 1, ["fs.file-max"] = 2,
      ["net.ipv4.ip_forward"] = 1, ["net.ipv4.conf.default.accept_redirects"] = 1, ["net.ipv6.conf.all.forwarding"] = 1,
    })
    local order = {"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net/ipv4/conf/all/accept_redirects",
      "net.ipv4.conf.default.accept_redirects", "fs.file-max", "net.ipv4.conf.A1.accept_redirects"}
    assert(string.gsub(got, " = %d", "") == table.concat(order, "\n") .. "\n", got)
  end,

  numbers_are_those_of_c = function()
    local max = "/proc/sys/fs/file-max"
    for said, told in pairs({["010"] = "8", ["0x1F"] = "31", ["-010"] = "-8"}) do
      file.write(max, told .. "\n")
      conf({["fs.file-max"] = said})
      assert(file.read(max) == told .. "\n", said .. " is taken for another number than " .. told)
    end
    for said, told in pairs({["010"] = "10", ["1e1"] = "10", ["0b10"] = "2", ["+5"] = "5", ["08"] = "8"}) do
      file.write(max, told .. "\n")
      conf({["fs.file-max"] = said})
      assert(file.read(max) == said .. "\n", said .. " is taken for " .. told)
    end
  end,

  lists_are_compared_as_such = function()
    local ports = "/proc/sys/net/ipv4/ip_local_reserved_ports"
    file.write(ports, "8080,9148-9150\n")
    conf({["net.ipv4.ip_local_reserved_ports"] = "9149,8080,9148,9150"})
    assert(file.read(ports) == "8080,9148-9150\n")
    conf({["net.ipv4.ip_local_reserved_ports"] = "9149,8080"})
    assert(file.read(ports) == "9149,8080\n")
  end,

  sees_what_ufw_sets = function()
    file.write("/etc/ufw/ufw.conf", "# on\nENABLED=yes\n", {parents = true})
    file.write("/etc/default/ufw", "IPT_SYSCTL=/etc/ufw/sysctl.conf\n", {parents = true})
    file.write("/etc/ufw/sysctl.conf", "# router\nnet/ipv4/ip_forward=0\n")
    test.run({name = "x", settings = settings}, {fails = "overridden at each boot by /etc/ufw/sysctl.conf:2"})
    file.write("/etc/ufw/ufw.conf", "ENABLED=no\n")
    conf(settings)
  end,

  values_are_exact = function()
    assert(conf({["fs.file-max"] = "9223372036854775807"}) == "fs.file-max = 9223372036854775807\n")
    assert(conf({["fs.file-max"] = 9007199254740991}) == "fs.file-max = 9007199254740991\n")
    assert(conf({["fs.file-max"] = 1e15}) == "fs.file-max = 1000000000000000\n")
    assert(conf({["fs.file-max"] = -1}) == "fs.file-max = -1\n")
    assert(conf({["net.ipv4.ip_forward"] = true}) == "net.ipv4.ip_forward = 1\n")
    assert(conf({["net.ipv4.ip_forward"] = false}) == "net.ipv4.ip_forward = 0\n")
    assert(conf({["net.ipv4.tcp_rmem"] = " 4\t5   6 "}) == "net.ipv4.tcp_rmem = 4 5 6\n")
    for _, value in ipairs({2^53, -2^53, 0.5}) do
      test.run({name = "x", settings = {["fs.file-max"] = value}}, {fails = "give it as text"})
    end
    file.write("/proc/sys/fs/file-max", "9223372036854775807\n")
    test.run({name = "x", settings = {["fs.file-max"] = "9223372036854775806"}}) -- as numbers they would be equal
    assert(file.read("/proc/sys/fs/file-max") == "9223372036854775806\n")
  end,

  what_can_only_be_written_is_written = function()
    test.command("sh -c *", {write = {["/var/flushed"] = "1"}})
    local run = test.run({name = "x", settings = {["net.ipv4.route.flush"] = 1, ["net.ipv4.ip_forward"] = 1}})
    assert(run.result.changed and run.result.write_only[1] == "net.ipv4.route.flush" and file.exists("/var/flushed"))
    assert(#run.commands == 1 and run.commands[1]:find(" 1 /proc/sys/net/ipv4/route/flush$"), run.commands[1])
    assert(file.read(CONF) == "net.ipv4.ip_forward = 1\nnet.ipv4.route.flush = 1\n")
  end,

  what_overrides_them_at_boot_is_named = function()
    local function overridden(path, line, by)
      file.write(path, "# a\n" .. line .. "\n", {parents = true})
      test.run({name = "x", settings = settings}, {fails = "overridden at each boot by " .. by})
      file.remove(path)
    end
    overridden("/etc/sysctl.d/y.conf", "net.ipv4.ip_forward=0", "/etc/sysctl.d/y.conf:2: net.ipv4.ip_forward=0")
    overridden("/usr/lib/sysctl.d/z.conf", " -net/ipv4/ip_forward = 0", "/usr/lib/sysctl.d/z.conf:2: ")
    overridden("/etc/sysctl.conf", "net.ipv4.tcp_rmem = 1 2 4", "/etc/sysctl.conf:2: ")
    for path, line in pairs({
      ["/etc/sysctl.d/a.conf"] = "net.ipv4.ip_forward = 0", ["/etc/sysctl.d/y.conf"] = "net.ipv4.ip_forward = 0x1",
      ["/etc/sysctl.d/z.conf"] = "#net.ipv4.ip_forward = 0", ["/usr/lib/sysctl.d/x.conf"] = "net.ipv4.ip_forward = 0",
    }) do
      file.write(path, line .. "\n", {parents = true})
    end
    file.symlink("/dev/null", "/etc/sysctl.d/zz.conf")
    assert(test.run({name = "x", settings = settings}).result.changed)
  end,

  refuses_what_is_more_than_a_value = function()
    test.run({name = "x", settings = {["net.ipv4.ip_forward"] = "1\nkernel.panic = 1"}}, {fails = "not one line"})
    test.run({name = "x", settings = {["net.ipv4.ip_forward"] = {1}}}, {fails = "not one line"})
    for _, name in ipairs({"../../etc/passwd", "net/../kernel/panic", "net..ipv4", "a/./b", "a b", "-a", "a=b", "net.", ""}) do
      test.run({name = "x", settings = {[name] = "1"}}, {fails = "no name of a parameter"})
    end
    test.run({name = "../x", settings = {}}, {fails = "name must match"})
    test.run({name = "x", settings = {["net.ipv4.none"] = 1, ["a.b"] = 1}},
      {fails = "this kernel has no a.b, net.ipv4.none: no such file"})
  end,

  survives_a_crash = function()
    test.crash({name = "router", settings = settings})
  end,
}
