-- A line of /etc/hosts: an address and the names that stand for it.

return script {
  name = "hosts-entry",
  version = "1.0",
  description = "give an address names in /etc/hosts, or take them away",
  params = {
    address = {type = "string", required = true, pattern = "^[%x:.]+$", description = "IPv4 or IPv6"},
    names = {type = "list", default = {}, description = "the names, the full one first"},
    state = {type = "string", default = "present", enum = {"present", "absent"}},
  },
  needs = {"file:/etc/hosts"},

  run = function(p)
    local of_address = "^\\s*" .. string.gsub(p.address, "%.", "\\.") .. "\\s"
    if p.state == "absent" then
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
    local line = p.address .. "\t" .. table.concat(p.names, " ")
    return {changed = file.line("/etc/hosts", {line = line, match = of_address, mode = "0644"})}
  end,
}
