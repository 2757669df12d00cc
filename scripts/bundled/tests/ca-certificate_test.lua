local PEM = [[
-----BEGIN CERTIFICATE-----
MIIBdjCCARugAwIBAgIUdG1/WnCdv2rfsGs/mjbz8JGD0/4wCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEY29ycDAgFw0yNjExMjkxMDE3NTJaGA8yMTI2MTEwNTEwMTc1
MlowDzENMAsGA1UEAwwEY29ycDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABBV0
3+QCa5pV6YRGeoyEh5ppC17AyMixw28iCiNe16dd3l4dnOfO8Owa9Edx3yxtQHZF
+xuC6j2kwyzD0T/9/RKjUzBRMB0GA1UdDgQWBBSWtmrzxKO5xDaodmi1Ny1pikV6
njAfBgNVHSMEGDAWgBSWtmrzxKO5xDaodmi1Ny1pikV6njAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0kAMEYCIQCIOmlmFw+b6xFetEnKgqax6ZxHvYPum5vg
/HfvZ0VWsgIhAMSjfOp/08tXXTRrpjFcFB59FVBFxtnYCMi64Yy1Sobo
-----END CERTIFICATE-----
]]
local EXPIRED = [[
-----BEGIN CERTIFICATE-----
MIIBcTCCARegAwIBAgIUHWXtwN6tYq4GSl2KBmXPWvcteU4wCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDb2xkMB4XDTIwMDEwMTAwMDAwMFoXDTIwMDEwMjAwMDAwMFow
DjEMMAoGA1UEAwwDb2xkMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqT2HI6XF
U3BK9E/KVmwy/AtayFhz42hyK3tVhSWW8lVWhkIz0wYbpG3UTcXRuvHwmYE3BiCl
t71wpTnACShXcaNTMFEwHQYDVR0OBBYEFKjt+VZkdOGYZdxrfERB9AryVfVlMB8G
A1UdIwQYMBaAFKjt+VZkdOGYZdxrfERB9AryVfVlMA8GA1UdEwEB/wQFMAMBAf8w
CgYIKoZIzj0EAwIDSAAwRQIgBhJSH15xM/j8ELPiDL7CfQ9xp8futZkVfnZLL1bx
iqgCIQDJP271acgnDIw5h5VRn/AphU4NKyPsWo3fnSm2V5w/ng==
-----END CERTIFICATE-----
]]
local FILE = "/usr/local/share/ca-certificates/corp.crt"
local BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
file.write("/etc/ssl/certs/one.pem", "one", {parents = true})
test.command("update-ca-certificates*", {write = {["/etc/ssl/certs/two.pem"] = "two"}})
test.command("date *", {stdout = "20260101000000\n"})

local function body(pem)
  return (pem:match("-\n(.*)\n%-"):gsub("%s", ""))
end

-- What is in the bundle once the file is there, and before.
local function bundle(with, without)
  test.command("cat *", {stdout = without or "# none\n"})
  test.command("cat *", {stdout = with, exists = "/etc/ssl/certs/two.pem"})
end

local function ran(run, line)
  for _, command in ipairs(run.commands) do
    if command == line then
      return true
    end
  end
end

return {
  is_trusted_and_no_longer = function()
    assert(test.run({name = "corp", pem = PEM}, {foretold = true}).result.changed)
    assert(file.read(FILE) == PEM)
    local run = test.run({name = "corp", state = "absent"}, {foretold = true})
    assert(run.result.changed and ran(run, "update-ca-certificates --fresh"))
    assert(not file.exists(FILE))
  end,

  comes_as_an_attachment = function()
    test.run({name = "corp"}, {attachments = {pem = PEM}})
    assert(file.read(FILE) == PEM)
    file.remove(FILE)
    test.run({name = "corp"}, {attachments = {pem = base64.decode(body(PEM))}}) -- in DER
    assert(file.read(FILE) == PEM, file.read(FILE))
  end,

  is_written_as_everybody_writes_it = function()
    test.run({name = "corp", pem = "subject=CN = corp\n" .. PEM:gsub("\n", "\r\n"):gsub("%s*$", "")})
    assert(file.read(FILE) == PEM)
  end,

  is_a_certificate = function()
    local function with(text)
      return "-----BEGIN CERTIFICATE-----\n" .. text .. "\n-----END CERTIFICATE-----\n"
    end
    for text, says in pairs({
      ["no"] = "not one certificate", [PEM .. PEM] = "not one certificate", [PEM .. EXPIRED] = "not one certificate",
      [PEM:sub(1, -30)] = "not one certificate", [PEM:gsub("BEGIN", "BEGIN TRUSTED")] = "not one certificate",
      [with("bm90IGEgY2VydA==")] = "is no certificate", [with("!")] = "is no certificate",
      [with(body(PEM):sub(1, 400))] = "cut off", [with(body(PEM):sub(1, 400) .. ("A"):rep(400))] = "is no certificate",
      [with("MIGTAgEAMBMGByqGSM49")] = "is no certificate", [base64.decode(body(PEM)):sub(1, -2)] = "not one certificate",
      [EXPIRED] = "has expired, on 2020-01-02",
      [PEM .. "-----BEGIN PRIVATE KEY-----\nMIGT\n-----END PRIVATE KEY-----\n"] = "private key",
      [PEM .. "-----BEGIN RSA PRIVATE KEY-----\n"] = "private key",
    }) do
      local run = test.run({name = "corp"}, {attachments = {pem = text}, fails = says})
      assert(not ran(run, "update-ca-certificates"))
    end
  end,

  is_seen_in_what_programs_read = function()
    bundle("# corp\n" .. PEM)
    assert(test.run({name = "corp", pem = PEM}).result.changed)
    file.remove("/etc/ssl/certs/two.pem") -- it is there, but not in the bundle
    local run = test.run({name = "corp", pem = PEM})
    assert(run.result.changed and ran(run, "update-ca-certificates"))
  end,

  is_taken_back_when_programs_would_not_see_it = function()
    bundle("# none\n")
    test.run({name = "corp", pem = PEM}, {fails = "does not have the certificate"})
    bundle(PEM .. PEM:gsub("\nM", "\nA", 1))
    test.run({name = "corp", pem = PEM}, {fails = "cannot be loaded: its certificate 2 is none"})
    test.command("cat *", {code = 1})
    test.run({name = "corp", pem = PEM}, {fails = BUNDLE .. " was not made"})
    bundle(PEM)
    test.command("sh -c *crl2pkcs7*", {code = 1, stderr = "bad object header"})
    test.run({name = "corp", pem = PEM}, {fails = "bad object header"})
  end,

  tells_that_it_is_trusted_all_the_same = function()
    file.write(FILE, PEM, {parents = true})
    bundle(PEM, PEM)
    local run = test.run({name = "corp", state = "absent"})
    assert(run.result.still_trusted and run.log[1]:find("still trusted"))
    file.write(FILE, PEM)
    bundle(EXPIRED, EXPIRED)
    assert(not test.run({name = "corp", state = "absent"}).result.still_trusted)
  end,

  leaves_no_links = function()
    test.command("sh -c *readlink*", {stdout = "/etc/ssl/certs/corp.pem\n"})
    test.command("sh -c *readlink*", {exists = "/etc/ssl/certs/two.pem"})
    local run = test.run({name = "corp", state = "absent"}) -- what an earlier removal left
    assert(run.result.changed and ran(run, "update-ca-certificates --fresh"))
    test.command("sh -c *readlink*", {stdout = "/etc/ssl/certs/corp.pem\n"})
    test.run({name = "corp", state = "absent"}, {fails = "links to the certificate are left: /etc/ssl/certs/corp.pem"})
  end,

  is_put_where_the_distribution_wants_it = function()
    for dir, update in pairs({
      ["/etc/pki/ca-trust/source/anchors"] = "update-ca-trust extract", ["/etc/pki/trust/anchors"] = "update-ca-certificates",
      ["/etc/ca-certificates/trust-source/anchors"] = "update-ca-trust",
    }) do
      file.mkdir(dir, {parents = true})
      local run = test.run({name = "corp", pem = PEM}, {again = false})
      assert(run.result.path == dir .. "/corp.crt" and file.read(run.result.path) == PEM and ran(run, update), dir)
      run = test.run({name = "corp", state = "absent"}, {again = false})
      assert(not file.exists(dir .. "/corp.crt") and (ran(run, update) or ran(run, update .. " --fresh")), dir)
      file.remove(dir)
    end
  end,

  is_taken_back_with_what_the_command_did = function()
    test.command("update-ca-certificates", {code = 1, write = {["/etc/ssl/certs/two.pem"] = "two"}})
    test.run({name = "corp", pem = PEM}, {fails = "exit code 1"})
    test.command("update-ca-certificates", {write = {["/etc/ssl/certs/two.pem"] = "two"}})
    test.crash({name = "corp", pem = PEM})
  end,
}
