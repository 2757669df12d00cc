local HOSTS = "/etc/hosts"
file.write(HOSTS, "127.0.0.1 localhost\n10.0.0.5 old\n")

-- Runs the script on a text, which must become another one; without it, stay as it is.
local function becomes(params, before, after)
  file.write(HOSTS, before)
  local run = test.run(params, {foretold = true})
  assert(file.read(HOSTS) == (after or before), file.read(HOSTS))
  assert(run.result.changed == (after ~= nil), before)
end

local DB = {address = "10.0.0.5", names = {"db.example.org", "db"}}

return {
  adds_names_to_an_address = function()
    becomes(DB, "127.0.0.1 localhost\n10.0.0.5 old\n", "127.0.0.1 localhost\n10.0.0.5 db.example.org db old\n")
    becomes(DB, "127.0.0.1 localhost", "127.0.0.1 localhost\n10.0.0.5\tdb.example.org db\n")
    becomes(DB, "127.0.0.1 localhost\r\n", "127.0.0.1 localhost\r\n10.0.0.5\tdb.example.org db\r\n")
    file.remove(HOSTS)
    assert(test.run(DB).result.changed and file.read(HOSTS) == "10.0.0.5\tdb.example.org db\n")
  end,

  goes_through_a_link = function()
    file.write("/etc/static", "10.0.0.5 a\n")
    file.remove(HOSTS)
    file.symlink("static", HOSTS)
    assert(test.run(DB).result.changed and file.stat(HOSTS).type == "symlink")
    assert(file.read("/etc/static") == "10.0.0.5 db.example.org db a\n")
  end,

  keeps_what_is_there = function()
    becomes(DB, "10.0.0.5 db.example.org db\n10.0.0.5 cache.example.org\n")
    becomes(DB, "10.0.0.5 cache\n10.0.0.5\t DB.example.org x db # the store\n")
    becomes(DB, "# 10.0.0.5 a\n\n\t10.0.0.5\t\tdb  cache # the store\r\n10.0.0.55 b",
      "# 10.0.0.5 a\n\n\t10.0.0.5\t\tdb.example.org db cache # the store\r\n10.0.0.55 b")
    becomes(DB, "10.0.0.5 cache\n10.0.0.5 db\n", "10.0.0.5 cache\n10.0.0.5 db.example.org db\n")
    becomes({address = "10.0.0.9", names = {"db"}}, "10.0.0.5 \n10.0.0.6 db\nnonsense a\n",
      "10.0.0.5 \nnonsense a\n10.0.0.9\tdb\n")
    becomes(DB, "10.0.0.5 db#x\n", "10.0.0.5 db.example.org db #x\n")
    becomes({address = "10.0.0.5", names = {"db", "db", "DB"}}, "10.0.0.5 a\n", "10.0.0.5 db a\n")
  end,

  moves_a_name = function()
    becomes({address = "10.0.0.9", names = DB.names}, "10.0.0.5 db.example.org db\n", "10.0.0.9\tdb.example.org db\n")
    becomes({address = "10.0.0.9", names = {"db"}}, "10.0.0.5 a Db b # c\n10.0.0.9 x\n", "10.0.0.5 a b # c\n10.0.0.9 db x\n")
    becomes({address = "10.0.0.9", names = {"db"}}, "10.0.0.5 db\n10.0.0.9 db\n", "10.0.0.9 db\n")
    becomes({address = "10.0.0.9", names = {"db"}}, "127.0.0.1 localhost db\n127.0.1.1 db\nfd00::5 db\n",
      "127.0.0.1 localhost\nfd00::5 db\n10.0.0.9\tdb\n")
  end,

  knows_an_address_by_its_value = function()
    local params = {address = "fd00::5", names = {"db"}}
    becomes(params, "FD00:0:0:0::5 db\n")
    becomes(params, "fd00:0000::0:5 x\n", "fd00:0000::0:5 db x\n")
    becomes(params, "fd00::6 db\n10.0.0.5 db\n", "10.0.0.5 db\nfd00::5\tdb\n")
    becomes({address = "FD00:0::5", names = {"db"}}, "fd00::5 db\n")
    becomes({address = "::ffff:10.0.0.5", names = {"db"}}, "::ffff:a00:5 db\n")
    becomes({address = "10.0.0.5", names = {"db"}}, "10.0.0.50 db2\n10.0.0.5 db\n")
    becomes({address = "0:0::1", names = {"localhost", "me"}}, "::1 localhost ip6-localhost\n",
      "::1 localhost me ip6-localhost\n")
  end,

  tells_that_cloud_init_takes_them_away = function()
    file.write(HOSTS, "# Your system has configured 'manage_etc_hosts' as True.\n127.0.0.1 localhost\n")
    assert(test.run(DB).result.note:find("at each boot"))
    file.write(HOSTS, "127.0.0.1 localhost\n")
    assert(not test.run(DB).result.note)
  end,

  takes_them_away = function()
    becomes({address = "10.0.0.5", state = "absent"}, "127.0.0.1 localhost\n10.0.0.5 old\n10.0.0.5\tx # y\n",
      "127.0.0.1 localhost\n")
    becomes({address = "10.0.0.6", state = "absent"}, "127.0.0.1 localhost\n10.0.0.5 old\n")
    becomes({address = "10.0.0.5", names = {"db"}, state = "absent"}, "10.0.0.5 db old\n10.0.0.6 db\n10.0.0.5 db\n",
      "10.0.0.5 old\n10.0.0.6 db\n")
    becomes({address = "fd00::5", state = "absent"}, "fd00:0::5 old\n::5 x\n", "::5 x\n")
  end,

  refuses_what_is_no_name = function()
    test.run({address = "10.0.0.6", names = {"a b"}}, {fails = "no host name"})
    test.run({address = "10.0.0.6", names = {"a#b"}}, {fails = "no host name"})
    test.run({address = "10.0.0.6"}, {fails = "names is empty"})
    test.run({address = "x; y", names = {"a"}}, {fails = "address must be an IP address"})
  end,

  keeps_the_name_of_the_loopback = function()
    test.run({address = "127.0.0.1", names = {"db"}}, {fails = "must keep the name localhost"})
    test.run({address = "::1", state = "absent"}, {fails = "must keep the name localhost"})
    test.run({address = "0:0:0::1", names = {"localhost"}, state = "absent"}, {fails = "must keep the name localhost"})
    test.run({address = "10.0.0.5", names = {"localhost"}}, {fails = "localhost is the name of"})
    becomes({address = "127.0.0.1", names = {"localhost", "db"}}, "127.0.0.1 localhost\n", "127.0.0.1 localhost db\n")
  end,

  survives_a_crash = function()
    test.crash({address = "10.0.0.5", names = {"db"}})
  end,
}
