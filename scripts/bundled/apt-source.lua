-- An APT package source with its signing key, which is trusted for this source only. APT itself reads the sources afterwards,
-- where it is there.

local APT = "/usr/bin/apt-get"
local METHODS = "/usr/lib/apt/methods" -- by which APT fetches, by the schemes of their URIs
-- What dpkg calls architectures that the kernel calls otherwise.
local ARCHITECTURES = {
  x86_64 = "amd64", aarch64 = "arm64", i686 = "i386", armv7l = "armhf", ppc64le = "ppc64el", riscv64gc = "riscv64",
}
-- What APT takes for no.
local OFF = {["no"] = true, ["false"] = true, ["without"] = true, ["off"] = true, ["disable"] = true, ["0"] = true}

local function joined(list, what)
  for _, word in ipairs(list) do
    if type(word) ~= "string" or not string.find(word, "^[%w_./:+~$()][%w_./:+~$()-]*$") then
      error(what .. ": " .. tostring(word) .. " is not one word")
    end
  end
  return table.concat(list, " ")
end

-- The fields Suites and Components. A suite that ends in a slash is a path in a flat repository, which has no components.
local function suites_and_components(suites, components)
  local flat = 0
  for _, suite in ipairs(suites) do
    flat = flat + (string.find(tostring(suite), "/$") and 1 or 0)
  end
  if #suites == 0 then
    error("suites is empty")
  elseif flat > 0 and flat < #suites then
    error("suites: a path in a flat repository and a suite cannot be in one source")
  elseif flat > 0 and components and #components > 0 then
    error("components: a flat repository, whose suites end in a slash, has none")
  elseif flat == 0 and components and #components == 0 then
    error("components is empty, and the suites are no paths in a flat repository, which end in a slash")
  end
  local lines = {"Suites: " .. joined(suites, "suites")}
  if flat == 0 then
    lines[2] = "Components: " .. joined(components or {"main"}, "components")
  end
  return lines
end

-- Fails where APT would not fetch from the source: it has no method for the URI, or dpkg no such architecture.
local function check_fetch(uri, architectures)
  local scheme = string.match(uri, "^[^:]*")
  if string.lower(scheme) == "ppa" then
    error("uri: " .. uri .. " is short for add-apt-repository alone; give https://ppa.launchpadcontent.net/OWNER/NAME/ubuntu")
  elseif file.exists(METHODS) and not file.exists(METHODS .. "/" .. scheme) then
    error("uri: APT has no method for " .. scheme .. ": there is no " .. METHODS .. "/" .. scheme)
  end
  for _, name in ipairs(architectures) do
    if ARCHITECTURES[name] then
      error("architectures: dpkg calls " .. name .. " " .. ARCHITECTURES[name])
    end
  end
end

-- The key as APT reads it, and the suffix of its file. In ASCII armor it wants an empty line before the key, and one key only.
local function keyring(key)
  if string.find(key, "^[\152\153\198]") then
    return key, ".gpg" -- as gpg --export writes it
  end
  key = string.gsub("\n" .. string.gsub(key, "\r", ""), "[ \t]*\n[ \t]*", "\n") -- as it is indented in YAML
  local block = " PGP PUBLIC KEY BLOCK%-%-%-%-%-"
  local blocks = select(2, string.gsub(key, "%-%-%-%-%-BEGIN" .. block .. "\n", ""))
  local text = string.match(key, "%-%-%-%-%-BEGIN" .. block .. "\n(.-)%-%-%-%-%-END" .. block)
  if blocks == 0 or string.find(key, "PRIVATE KEY", 1, true) then
    error("key is not a public key in ASCII armor")
  elseif not text then
    error("key is cut off: it has no end")
  elseif blocks > 1 then
    error("key holds " .. blocks .. " blocks, of which APT would read the first only")
  end
  local head, body = {}, {}
  for line in string.gmatch(text, "[^\n]+") do
    local list = #body == 0 and string.find(line, "^%u[%w-]*:") and head or body
    list[#list + 1] = string.find(line, "%S") and line or nil
  end
  if not string.find(body[1] or "", "^[mx]") then -- the first byte of a public key
    error("key is not a public key in ASCII armor")
  end
  for _, line in ipairs(body) do
    if not string.find(line, "^[%w+/=]+$") then
      error("key is damaged: " .. line .. " is not base64")
    end
  end
  return "-----BEGIN PGP PUBLIC KEY BLOCK-----\n" .. table.concat(head, "\n") .. (#head > 0 and "\n\n" or "\n") ..
    table.concat(body, "\n") .. "\n-----END PGP PUBLIC KEY BLOCK-----\n", ".asc"
end

-- Calls visit with the URI, the suite and the key of each source of a file.
local function each_source(path, visit)
  local text = string.gsub(file.read(path), "\r", "") .. "\n"
  if string.find(path, "%.list$") then
    for line in string.gmatch(text, "[^\n]+") do
      local options, rest = string.match(line, "^%s*deb%s+%[(.-)%]%s*(.*)$")
      local uri, suite = string.match(rest or "", "^(%S+)%s+(%S+)")
      if uri then
        visit(uri, suite, string.match(options, "signed%-by=(%S+)"))
      end
    end
    return
  end
  for stanza in string.gmatch(string.gsub(text, "\n%s*\n", "\n\0") .. "\0", "(.-)%z") do
    local fields, last = {}, ""
    for line in string.gmatch(stanza, "[^\n]+") do
      local name, value = string.match(line, "^([%w-]+):(.*)$")
      if name then
        last = string.lower(name)
        fields[last] = value
      elseif string.find(line, "^%s") then
        fields[last] = (fields[last] or "") .. " " .. line
      end
    end
    local enabled = not OFF[string.lower(string.match(fields.enabled or "", "%S+") or "")]
    if enabled and string.find(" " .. (fields.types or "") .. " ", "%sdeb%s") then
      for uri in string.gmatch(fields.uris or "", "%S+") do
        for suite in string.gmatch(fields.suites or "", "%S+") do
          visit(uri, suite, string.match(fields["signed-by"] or "", "%S+"))
        end
      end
    end
  end
end

-- Fails if another file has the source with another key: then APT reads none at all.
local function check_others(ours, uri, suites, key)
  local wanted = {}
  for _, suite in ipairs(suites) do
    wanted[suite] = true
  end
  local paths = file.glob("/etc/apt/sources.list.d/*.list")
  for _, path in ipairs(file.glob("/etc/apt/sources.list.d/*.sources")) do
    paths[#paths + 1] = path
  end
  paths[#paths + 1] = file.exists("/etc/apt/sources.list") and "/etc/apt/sources.list" or nil
  for _, path in ipairs(paths) do
    if path ~= ours then
      each_source(path, function(other, suite, signed)
        if string.gsub(other, "/*$", "") == string.gsub(uri, "/*$", "") and wanted[suite] and signed and signed ~= key then
          error("the source is in " .. path .. ", too, with the key " .. signed .. ": APT takes no source with two keys")
        end
      end)
    end
  end
end

return script {
  name = "apt-source",
  version = "2.1",
  description = "add an APT package source with its key",
  params = {
    name = {type = "string", required = true, pattern = "^%w[%w_.-]*$", description = "the name of both files, without suffix"},
    uri = {type = "string", required = true, pattern = "^%a[%w+.-]*:%S+$"},
    suites = {type = "list", required = true, description = "such as bookworm; of a flat repository a path, such as / or ./"},
    components = {type = "list", description = "default: main; a flat repository has none"},
    architectures = {type = "list", default = {}},
    key = {
      type = "string",
      description = "the key in ASCII armor; it may come as the attachment \"key\" instead, also as gpg --export writes it",
    },
    update = {type = "boolean", default = false, description = "update the package lists now"},
  },
  os = {"linux"},
  needs = {"file:/etc/apt/", "file:/usr/bin/apt-get", "file:/usr/lib/apt/methods/", "exec:apt-get"},

  run = function(p)
    check_fetch(p.uri, p.architectures)
    local key, suffix = keyring(p.key or file.attachment("key"))
    local ring = "/etc/apt/keyrings/" .. p.name
    local lines = {"Types: deb", "URIs: " .. p.uri}
    for _, line in ipairs(suites_and_components(p.suites, p.components)) do
      lines[#lines + 1] = line
    end
    if #p.architectures > 0 then
      lines[#lines + 1] = "Architectures: " .. joined(p.architectures, "architectures")
    end
    lines[#lines + 1] = "Signed-By: " .. ring .. suffix
    local changed = file.write(ring .. suffix, key, {mode = "0644", parents = true})
    changed = file.remove(ring .. (suffix == ".asc" and ".gpg" or ".asc")) or changed
    local list = "/etc/apt/sources.list.d/" .. p.name .. ".sources"
    changed = file.write(list, table.concat(lines, "\n") .. "\n", {mode = "0644", parents = true}) or changed
    check_others(list, p.uri, p.suites, ring .. suffix)
    if file.exists(APT) then
      exec.run({"apt-get", "indextargets"}, {readonly = true, plan = "APT reads its sources"})
    end
    if changed and p.update then
      local run = exec.run({"apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any"}, {
        env = {DEBIAN_FRONTEND = "noninteractive"},
        touches = {"/var/lib/apt", "/var/cache/apt"},
        plan = "update the package lists",
      })
      local failed = string.match("\n" .. run.stderr, "\n(W: [^\n]*Failed to fetch[^\n]*)")
      if failed then -- an APT that does not know Error-Mode
        error("apt-get update: " .. failed)
      end
    end
    return {changed = changed, source = list, key = ring .. suffix}
  end,
}
