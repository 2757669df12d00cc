-- A line of /etc/hosts: an address and its names.

return script {
  name = "hosts-entry",
  version = "1.0",
  description = "add or remove a line of /etc/hosts",
  params = {
    address = {type = "ip", required = true, description = "IPv4 or IPv6"},
    names = {type = "list", default = {}, description = "the names, the full one first"},
    state = {type = "string", default = "present", enum = {"present", "absent"}},
  },
  needs = {"file:/etc/hosts"},

  run = function(p)
    local of_address = "^\\s*" .. string.gsub(p.address, "%.", "\\.") .. "\\s"
    local loopback = p.address == "127.0.0.1" or p.address == "::1"
    local function keeps_localhost(names)
      if loopback and not string.find(" " .. names .. " ", " localhost ", 1, true) then
        error(p.address .. " must keep the name localhost")
      end
    end
    if p.state == "absent" then
      keeps_localhost("")
      return {changed = file.line("/etc/hosts", {match = of_address, state = "absent"})}
    end
    if #p.names == 0 then
      error("names is empty")
    end
    for _, name in ipairs(p.names) do
      if type(name) ~= "string" or not string.find(name, "^[%w][%w.-]*$") then
        error("names: " .. tostring(name) .. " is no host name")
      end
    end
    keeps_localhost(table.concat(p.names, " "))
    local line = p.address .. "\t" .. table.concat(p.names, " ")
    return {changed = file.line("/etc/hosts", {line = line, match = of_address, mode = "0644"})}
  end,
}
