local PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
local FILE = "/usr/local/share/ca-certificates/corp.crt"
file.write("/etc/ssl/certs/one.pem", "one", {parents = true})
test.command("update-ca-certificates", {write = {["/etc/ssl/certs/two.pem"] = "two"}})

return {
  is_trusted_and_no_longer = function()
    assert(test.run({name = "corp", pem = PEM}, {foretold = true}).result.changed)
    assert(file.read(FILE) == PEM)
    assert(test.run({name = "corp", state = "absent"}, {foretold = true}).result.changed)
    assert(not file.exists(FILE))
  end,

  comes_as_an_attachment = function()
    test.run({name = "corp"}, {attachments = {pem = PEM}})
    assert(file.read(FILE) == PEM)
  end,

  is_a_certificate = function()
    test.run({name = "corp", pem = "no"}, {fails = "not one certificate"})
    test.run({name = "corp", pem = PEM .. PEM}, {fails = "not one certificate"})
  end,

  is_taken_back_with_what_the_command_did = function()
    test.command("update-ca-certificates", {code = 1, write = {["/etc/ssl/certs/two.pem"] = "two"}})
    test.run({name = "corp", pem = PEM}, {fails = "exit code 1"})
    test.command("update-ca-certificates", {write = {["/etc/ssl/certs/two.pem"] = "two"}})
    test.crash({name = "corp", pem = PEM})
  end,
}
