local KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n-----END PGP PUBLIC KEY BLOCK-----\n"
file.mkdir("/var/cache/apt", {parents = true})
file.mkdir("/var/lib/apt")
test.command("apt-get update *", {write = {["/var/lib/apt/lists/deb"] = "x"}})

local function params(with)
  local p = {name = "tools", uri = "https://deb.example.org/debian", suites = {"bookworm"}, key = KEY, update = true}
  for name, value in pairs(with or {}) do
    p[name] = value
  end
  return p
end

return {
  is_added_with_its_key = function()
    local run = test.run(params(), {foretold = true})
    assert(run.result.changed and run.commands[1]:find("^apt%-get update %-q"))
    assert(file.read("/etc/apt/sources.list.d/tools.sources") == "Types: deb\nURIs: https://deb.example.org/debian\n" ..
      "Suites: bookworm\nComponents: main\nSigned-By: /etc/apt/keyrings/tools.asc\n")
    assert(file.read("/etc/apt/keyrings/tools.asc") == KEY)
  end,

  takes_the_key_as_an_attachment = function()
    local p = params({components = {}, architectures = {"amd64"}, update = false})
    p.key = nil
    test.run(p, {attachments = {key = KEY}})
    assert(file.read("/etc/apt/sources.list.d/tools.sources"):find("\nArchitectures: amd64\nSigned%-By: "))
  end,

  refuses_what_is_more_than_a_word = function()
    test.run(params({suites = {"bookworm\nTrusted: yes"}}), {fails = "is not one word"})
    test.run(params({suites = {}}), {fails = "suites is empty"})
    test.run(params({key = "x"}), {fails = "not a public key"})
    test.run(params({uri = "https://a b"}), {fails = "uri must match"})
  end,

  survives_a_crash = function()
    test.crash(params())
  end,
}
