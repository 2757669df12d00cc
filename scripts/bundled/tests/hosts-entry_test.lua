file.write("/etc/hosts", "127.0.0.1 localhost\n10.0.0.5 old\n")

return {
  sets_the_names_of_an_address = function()
    assert(test.run({address = "10.0.0.5", names = {"db.example.org", "db"}}, {foretold = true}).result.changed)
    assert(file.read("/etc/hosts") == "127.0.0.1 localhost\n10.0.0.5\tdb.example.org db\n")
  end,

  takes_them_away = function()
    assert(test.run({address = "10.0.0.5", state = "absent"}, {foretold = true}).result.changed)
    assert(file.read("/etc/hosts") == "127.0.0.1 localhost\n")
    assert(not test.run({address = "10.0.0.6", state = "absent"}).result.changed)
  end,

  refuses_what_is_no_name = function()
    test.run({address = "10.0.0.6", names = {"a b"}}, {fails = "no host name"})
    test.run({address = "10.0.0.6"}, {fails = "names is empty"})
    test.run({address = "x; y", names = {"a"}}, {fails = "address must be an IP address"})
  end,

  keeps_the_name_of_the_loopback = function()
    test.run({address = "127.0.0.1", names = {"db"}}, {fails = "must keep the name localhost"})
    test.run({address = "::1", state = "absent"}, {fails = "must keep the name localhost"})
    assert(test.run({address = "127.0.0.1", names = {"localhost", "db"}}).result.changed)
  end,

  survives_a_crash = function()
    test.crash({address = "10.0.0.5", names = {"db"}})
  end,
}
