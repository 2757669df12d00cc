local function armor(text)
  return "-----BEGIN PGP PUBLIC KEY BLOCK-----\n" .. text .. "-----END PGP PUBLIC KEY BLOCK-----\n"
end

local KEY = armor("\nmDMEZ\n=abcd\n")
local SOURCE = "/etc/apt/sources.list.d/tools.sources"
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
  is_of_a_kind_that_apt_fetches = function()
    test.run(params({uri = "ppa:owner/name"}), {fails = "add-apt-repository alone"})
    test.run(params({architectures = {"arm64", "x86_64"}}), {fails = "dpkg calls x86_64 amd64"})
    file.write("/usr/lib/apt/methods/http", "", {parents = true})
    test.run(params(), {fails = "APT has no method for https"})
    test.run(params({uri = "http://deb.example.org/debian"}))
  end,

  is_added_with_its_key = function()
    local run = test.run(params(), {foretold = true})
    assert(run.result.changed and run.commands[1]:find("^apt%-get update %-q"))
    assert(file.read(SOURCE) == "Types: deb\nURIs: https://deb.example.org/debian\n" ..
      "Suites: bookworm\nComponents: main\nSigned-By: /etc/apt/keyrings/tools.asc\n")
    assert(file.read("/etc/apt/keyrings/tools.asc") == KEY)
  end,

  takes_the_key_as_an_attachment = function()
    local p = params({components = {"a", "b"}, architectures = {"amd64"}, update = false})
    p.key = nil
    test.run(p, {attachments = {key = KEY}})
    assert(file.read(SOURCE):find("\nComponents: a b\nArchitectures: amd64\nSigned%-By: "))
    test.run(p, {attachments = {key = "\153\1\2"}}) -- as gpg --export writes it
    assert(file.read("/etc/apt/keyrings/tools.gpg") == "\153\1\2" and not file.exists("/etc/apt/keyrings/tools.asc"))
    assert(file.read(SOURCE):find("\nSigned%-By: /etc/apt/keyrings/tools.gpg\n"))
  end,

  makes_the_key_what_apt_reads = function()
    for given, written in pairs({
      [armor("mQ==\n")] = armor("\nmQ==\n"), [armor("\r\nmQ==\r\n=abcd\r\n")] = armor("\nmQ==\n=abcd\n"),
      [armor("Version: 1\nComment: x\n\nmQ==\n")] = armor("Version: 1\nComment: x\n\nmQ==\n"),
      [armor("Version: 1\nComment: \n\nmQ==\n")] = armor("Version: 1\nComment:\n\nmQ==\n"),
      ["  " .. string.gsub(armor("\nmQ==\n=abcd\n"), "\n", " \n  ")] = armor("\nmQ==\n=abcd\n"),
      ["pub\n" .. armor("\nxsBN\n\n") .. "more"] = armor("\nxsBN\n"),
    }) do
      test.run(params({key = given}))
      assert(file.read("/etc/apt/keyrings/tools.asc") == written, file.read("/etc/apt/keyrings/tools.asc"))
    end
  end,

  knows_flat_repositories = function()
    for _, suite in ipairs({"/", "./", "stable/", "$(ARCH)/"}) do
      test.run(params({suites = {suite}}))
      assert(file.read(SOURCE):find("\nSuites: " .. suite .. "\nSigned-By: ", 1, true), file.read(SOURCE))
    end
    test.run(params({suites = {"/"}, components = {}}))
    test.run(params({suites = {"/"}, components = {"main"}}), {fails = "has none"})
    test.run(params({suites = {"/", "bookworm"}}), {fails = "cannot be in one source"})
    test.run(params({components = {}}), {fails = "components is empty"})
    test.run(params({suites = {"bookworm/updates"}}))
    assert(file.read(SOURCE):find("\nSuites: bookworm/updates\nComponents: main\n"))
  end,

  names_the_file_that_has_it_with_another_key = function()
    for path, text in pairs({
      ["/etc/apt/sources.list"] = "deb [arch=amd64 signed-by=/other.gpg] https://deb.example.org/debian/ bookworm main\n",
      ["/etc/apt/sources.list.d/a.list"] = "# x\n deb [ signed-by=/other.gpg ] https://deb.example.org/debian bookworm main\n",
      ["/etc/apt/sources.list.d/b.sources"] = "Types: deb\nURIs: https://a\nSuites: x\n\nTypes: deb-src deb\n" ..
        "URIs: https://c https://deb.example.org/debian/\nSuites: sid\n bookworm\nSigned-By: /other.gpg\n",
    }) do
      file.write(path, text, {parents = true})
      test.run(params(), {fails = "the source is in " .. path .. ", too, with the key /other.gpg"})
      file.remove(path)
    end
    file.write("/etc/apt/sources.list", "deb https://deb.example.org/debian bookworm main\n" ..
      "#deb [signed-by=/other.gpg] https://deb.example.org/debian bookworm main\n" ..
      "deb [signed-by=/other.gpg] https://deb.example.org/debian sid main\n" ..
      "deb [signed-by=/etc/apt/keyrings/tools.asc] https://deb.example.org/debian bookworm main\n")
    file.write("/etc/apt/sources.list.d/off.sources", "Enabled: no\nTypes: deb\nURIs: https://deb.example.org/debian\n" ..
      "Suites: bookworm\nSigned-By: /other.gpg\n", {parents = true})
    assert(test.run(params()).result.changed)
  end,

  is_taken_back_when_its_lists_are_not_there = function()
    test.command("apt-get update *", {stderr = "W: x\nW: Failed to fetch https://deb.example.org/debian  404\n"})
    test.run(params(), {fails = "apt-get update: W: Failed to fetch https://deb.example.org/debian  404"})
  end,

  is_taken_back_when_apt_does_not_read_it = function()
    file.write("/usr/bin/apt-get", "")
    assert(test.run(params()).commands[1] == "apt-get indextargets")
    file.remove(SOURCE)
    test.command("apt-get indextargets", {code = 100, stderr = "Malformed entry"})
    test.run(params(), {fails = "Malformed entry"})
  end,

  refuses_what_is_more_than_a_word = function()
    test.run(params({suites = {"bookworm\nTrusted: yes"}}), {fails = "is not one word"})
    test.run(params({suites = {}}), {fails = "suites is empty"})
    test.run(params({suites = {"-x"}}), {fails = "is not one word"})
    test.run(params({uri = "https://a b"}), {fails = "uri must match"})
    for key, says in pairs({
      ["x"] = "not a public key", ["<html>"] = "not a public key", [armor("\nAAAA\n")] = "not a public key", [armor("\nmQ==\nm!==\n")] = "m!== is not base64",
      [KEY:gsub("PUBLIC", "PRIVATE")] = "not a public key", [KEY:sub(1, -20)] = "cut off", [KEY .. KEY] = "holds 2 blocks",
    }) do
      test.run(params({key = key}), {fails = says})
    end
  end,

  survives_a_crash = function()
    test.crash(params())
  end,
}
