-- An APT package source with its signing key, which is trusted for this source only.

local function joined(list, what)
  for _, word in ipairs(list) do
    if type(word) ~= "string" or not string.find(word, "^[%w][%w_./:+~-]*$") then
      error(what .. ": " .. tostring(word) .. " is not one word")
    end
  end
  return table.concat(list, " ")
end

return script {
  name = "apt-source",
  version = "1.0",
  description = "add an APT package source with its key",
  params = {
    name = {type = "string", required = true, pattern = "^%w[%w_.-]*$", description = "the name of both files, without suffix"},
    uri = {type = "string", required = true, pattern = "^%a[%w+.-]*:%S+$"},
    suites = {type = "list", required = true, description = "such as bookworm"},
    components = {type = "list", default = {"main"}},
    architectures = {type = "list", default = {}},
    key = {type = "string", description = "the key in ASCII armor; it may come as the attachment \"key\" instead"},
    update = {type = "boolean", default = false, description = "update the package lists now"},
  },
  needs = {"file:/etc/apt/", "exec:apt-get"},

  run = function(p)
    local key = p.key or file.attachment("key")
    if not string.find(key, "-----BEGIN PGP PUBLIC KEY BLOCK-----", 1, true) then
      error("key is not a public key in ASCII armor")
    end
    if #p.suites == 0 then
      error("suites is empty")
    end
    local keyring = "/etc/apt/keyrings/" .. p.name .. ".asc"
    local lines = {"Types: deb", "URIs: " .. p.uri, "Suites: " .. joined(p.suites, "suites")}
    if #p.components > 0 then
      lines[#lines + 1] = "Components: " .. joined(p.components, "components")
    end
    if #p.architectures > 0 then
      lines[#lines + 1] = "Architectures: " .. joined(p.architectures, "architectures")
    end
    lines[#lines + 1] = "Signed-By: " .. keyring
    local changed = file.write(keyring, key, {mode = "0644", parents = true})
    local list = "/etc/apt/sources.list.d/" .. p.name .. ".sources"
    changed = file.write(list, table.concat(lines, "\n") .. "\n", {mode = "0644", parents = true}) or changed
    if changed and p.update then
      exec.run({"apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any"}, {
        env = {DEBIAN_FRONTEND = "noninteractive"},
        touches = {"/var/lib/apt", "/var/cache/apt"},
        plan = "update the package lists",
      })
    end
    return {changed = changed, source = list, key = keyring}
  end,
}
