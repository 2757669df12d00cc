-- A certificate authority that the guest trusts.

return script {
  name = "ca-certificate",
  version = "1.0",
  description = "add or remove a trusted certificate authority",
  params = {
    name = {type = "string", required = true, pattern = "^%w[%w_.-]*$", description = "the name of the file, without .crt"},
    pem = {type = "string", description = "the certificate; it may come as the attachment \"pem\" instead"},
    state = {type = "string", default = "present", enum = {"present", "absent"}},
  },
  needs = {"file:/usr/local/share/ca-certificates/", "file:/etc/ssl/certs/", "exec:update-ca-certificates"},

  run = function(p)
    local path = "/usr/local/share/ca-certificates/" .. p.name .. ".crt"
    local changed
    if p.state == "absent" then
      changed = file.remove(path)
    else
      local pem = p.pem or file.attachment("pem")
      local _, count = string.gsub(pem, "%-%-%-%-%-BEGIN CERTIFICATE%-%-%-%-%-", "")
      if count ~= 1 or not string.find(pem, "-----END CERTIFICATE-----", 1, true) then
        error("pem is not one certificate in PEM")
      end
      changed = file.write(path, pem, {mode = "0644", parents = true})
    end
    if changed then
      exec.run({"update-ca-certificates"}, {
        touches = {"/etc/ssl/certs", "/etc/ca-certificates"},
        plan = "the certificates in /etc/ssl/certs follow",
      })
    end
    return {changed = changed, path = path}
  end,
}
