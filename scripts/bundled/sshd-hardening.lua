-- A stricter SSH server. sshd tests the configuration before the server reloads it.

local PATH = "/etc/ssh/sshd_config.d/00-hardening.conf"

local function succeeds(...)
  return exec.run({...}, {readonly = true, check = false}).code == 0
end

return script {
  name = "sshd-hardening",
  version = "1.0",
  description = "keys only and no root passwords for the SSH server, tested by sshd -t",
  params = {
    permit_root_login = {type = "string", default = "prohibit-password",
      enum = {"no", "prohibit-password", "forced-commands-only", "yes"}},
    password_authentication = {type = "boolean", default = false},
    allow_groups = {type = "list", default = {}, description = "only members of these groups; empty: all users"},
    max_auth_tries = {type = "integer", default = 3, min = 1},
    unit = {
      type = "string", default = "ssh.service", pattern = "^[%w@_.-]+%.service$", description = "the unit to reload",
    },
  },
  needs = {"file:/etc/ssh/", "file:/run/sshd", "exec:systemctl", "exec:sshd", "exec:true", "tx"},

  run = function(p)
    for _, group in ipairs(p.allow_groups) do
      if type(group) ~= "string" or not string.find(group, "^[%w_][%w_.-]*$") then
        error("allow_groups: " .. tostring(group) .. " is no group")
      end
    end
    local main = file.read("/etc/ssh/sshd_config")
    if not string.find("\n" .. main, "\n%s*[Ii]nclude%s+/etc/ssh/sshd_config%.d/%*%.conf") then
      error("/etc/ssh/sshd_config does not include /etc/ssh/sshd_config.d/*.conf")
    end
    local lines = {
      "PermitRootLogin " .. p.permit_root_login,
      "PasswordAuthentication " .. (p.password_authentication and "yes" or "no"),
      "KbdInteractiveAuthentication " .. (p.password_authentication and "yes" or "no"),
      "PermitEmptyPasswords no",
      "MaxAuthTries " .. string.format("%d", p.max_auth_tries),
      "X11Forwarding no",
    }
    if #p.allow_groups > 0 then
      lines[#lines + 1] = "AllowGroups " .. table.concat(p.allow_groups, " ")
    end
    local text = table.concat(lines, "\n") .. "\n"
    if file.exists(PATH) and file.read(PATH) == text then
      return {changed = false, path = PATH}
    end
    local runs = succeeds("systemctl", "is-active", "--quiet", p.unit)
    local reload = {"systemctl", "try-reload-or-restart", p.unit}
    if runs then
      tx.on_rollback(reload) -- after the old file is restored
    end
    file.write(PATH, text, {mode = "0600", parents = true})
    file.mkdir("/run/sshd", {mode = "0755", parents = true}) -- sshd needs it, and it exists only while a server runs
    exec.run({"sshd", "-t"}, {readonly = true}) -- a failure ends the script, and all is rolled back
    if runs then
      exec.run(reload, {undo = {"true"}, plan = "the server reads its configuration"})
    end
    return {changed = true, path = PATH, reloaded = runs}
  end,
}
