-- A certificate authority that the guest trusts. Programs read one file with all of them, so that is looked at afterwards: it
-- must have the certificate in it, and be one that can be loaded.

-- Where distributions keep them: the first whose directory is there; Debian's where none is.
local LAYOUTS = {
  { -- Fedora, RHEL and what comes from them
    dir = "/etc/pki/ca-trust/source/anchors", bundle = "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    update = {"update-ca-trust", "extract"}, touches = {"/etc/pki/ca-trust/extracted"},
  },
  { -- SUSE
    dir = "/etc/pki/trust/anchors", bundle = "/var/lib/ca-certificates/ca-bundle.pem",
    update = {"update-ca-certificates"}, fresh = true, touches = {"/var/lib/ca-certificates", "/etc/ssl"},
  },
  { -- Arch
    dir = "/etc/ca-certificates/trust-source/anchors", bundle = "/etc/ca-certificates/extracted/tls-ca-bundle.pem",
    update = {"update-ca-trust"}, touches = {"/etc/ca-certificates/extracted", "/etc/ssl/certs"},
  },
  { -- Debian, Alpine
    dir = "/usr/local/share/ca-certificates", bundle = "/etc/ssl/certs/ca-certificates.crt", links = "/etc/ssl/certs",
    update = {"update-ca-certificates"}, fresh = true, touches = {"/etc/ssl/certs", "/etc/ca-certificates"},
  },
}

-- An object of ASN.1 in DER: its tag, where its content begins and where it ends; nil where none is whole.
local function object(data, at, stop)
  local tag, length = string.byte(data, at, at + 1)
  local from = at + 2
  if not length then
    return nil
  elseif length >= 0x80 then
    local size = length - 0x80
    length = 0
    if size < 1 or size > 4 then
      return nil
    end
    for i = 0, size - 1 do
      length = length * 256 + (string.byte(data, from + i) or 0)
    end
    from = from + size
  end
  if from + length - 1 > stop then
    return nil
  end
  return tag, from, from + length - 1
end

-- Walks over objects that must have these tags and fill the place from at to stop, or only begin there if more is true. Gives
-- where each begins and ends.
local function objects(data, at, stop, tags, more)
  local list = {}
  for i, want in ipairs(tags) do
    local tag, from, to = object(data, at, stop)
    if tag ~= want then
      return nil
    end
    list[i], at = {from, to}, to + 1
  end
  return (more or at == stop + 1) and list or nil
end

-- The end of the validity of a certificate as YYYYMMDDhhmmss; nil of what is no certificate.
local function not_after(der)
  local whole = objects(der, 1, #der, {0x30})
  local parts = whole and objects(der, whole[1][1], whole[1][2], {0x30, 0x30, 0x03})
  if not parts then
    return nil
  end
  local at, stop = unpack(parts[1])
  local tag, _, to = object(der, at, stop)
  if tag == 0xa0 then -- the version; the first has none
    at = to + 1
  end
  local fields = objects(der, at, stop, {0x02, 0x30, 0x30, 0x30, 0x30, 0x30}, true)
  if not fields then
    return nil
  end
  local _, _, first = object(der, fields[4][1], fields[4][2])
  local kind, from, last = object(der, (first or stop) + 1, fields[4][2])
  local text = kind and string.sub(der, from, last) or ""
  if kind == 0x17 and string.find(text, "^%d+Z$") and #text == 13 then
    return (tonumber(string.sub(text, 1, 2)) < 50 and "20" or "19") .. string.sub(text, 1, 12)
  end
  return kind == 0x18 and string.match(text, "^%d%d%d%d%d%d%d%d%d%d%d%d%d%d") or nil
end

-- The certificates of a text, each in DER; false for one that is none.
local function certificates(text)
  local list = {}
  for body in string.gmatch(text, "%-%-%-%-%-BEGIN CERTIFICATE%-%-%-%-%-(.-)%-%-%-%-%-") do
    local ok, der = pcall(base64.decode, (string.gsub(body, "%s", "")))
    list[#list + 1] = ok and not_after(der) and der or false
  end
  return list
end

-- Makes PEM as everybody writes it of the one certificate that was given, in PEM or DER.
local function one_certificate(given)
  if string.find(given, "PRIVATE KEY-----", 1, true) then
    error("pem holds a private key, which nobody else must have")
  end
  local list = {given}
  if not not_after(given) then
    local _, begun = string.gsub(given, "%-%-%-%-%-BEGIN [%u%d ]*CERTIFICATE%-%-%-%-%-", "")
    local _, ended = string.gsub(given, "%-%-%-%-%-END CERTIFICATE%-%-%-%-%-", "")
    list = certificates(given)
    if begun ~= 1 or ended ~= 1 or #list ~= 1 then
      error("pem is not one certificate in PEM: " .. begun .. " begin and " .. ended .. " end")
    elseif not list[1] then
      error("pem is no certificate: what it encodes is something else, or cut off")
    end
  end
  local date = exec.run({"date", "-u", "+%Y%m%d%H%M%S"}, {readonly = true, check = false, plan = "the time is asked for"})
  local now = string.match(date.stdout, "^%d+")
  local ends = not_after(list[1])
  if now and ends < now then
    error("the certificate has expired, on " .. string.gsub(ends, "^(%d%d%d%d)(%d%d)(%d%d).*", "%1-%2-%3"))
  end
  local lines = string.gsub(base64.encode(list[1]), string.rep(".", 64), "%0\n")
  return "-----BEGIN CERTIFICATE-----\n" .. string.gsub(lines, "\n$", "") .. "\n-----END CERTIFICATE-----\n", list[1]
end

local function layout()
  for _, l in ipairs(LAYOUTS) do
    if file.exists(l.dir) then
      return l
    end
  end
  return LAYOUTS[#LAYOUTS]
end

-- What programs read of the guest; "" in a dry run, in which nothing was made. Then there is nothing to look at.
local function bundle_of(l)
  local run = exec.run({"cat", l.bundle}, {readonly = true, check = false, plan = "it is looked at", max_output = 64 * 2^20})
  if run.truncated then
    error(l.bundle .. " is too large")
  end
  return run.stdout, run.code
end

local function contains(bundle, der)
  for _, other in ipairs(certificates(bundle)) do
    if other == der then
      return true
    end
  end
  return false
end

-- The links of a directory that lead to a file that is not there: to it, or to the link of its name.
local LINKS = [[
for link in "$1"/*; do
  if test -L "$link" && ! test -e "$link"; then
    case $(readlink "$link") in "$2" | "$3") echo "$link" ;; esac
  fi
done]]

local function dangling(l, path)
  if not l.links then
    return ""
  end
  local name = string.match(path, "([^/]*)%.crt$") .. ".pem"
  return exec.run({"sh", "-c", LINKS, "sh", l.links, path, name}, {readonly = true, plan = "links to it are looked for"}).stdout
end

local function update(l, removed)
  local argv = {unpack(l.update)}
  if removed and l.fresh then
    argv[#argv + 1] = "--fresh" -- else links to what is gone are left
  end
  exec.run(argv, {touches = l.touches, plan = "the certificates in " .. l.bundle .. " follow"})
end

-- Fails unless programs that read the bundle can do so.
local function check_loads(l, bundle, code)
  if code ~= 0 then
    error(l.bundle .. " was not made")
  end
  for i, der in ipairs(certificates(bundle)) do
    if not der then
      error(l.bundle .. " cannot be loaded: its certificate " .. i .. " is none")
    end
  end
  local load = "! command -v openssl >/dev/null || openssl crl2pkcs7 -nocrl -certfile " .. l.bundle .. " -out /dev/null"
  exec.run({"sh", "-c", load}, {readonly = true, plan = "it is loaded"})
end

return script {
  name = "ca-certificate",
  version = "2.0",
  description = "add or remove a trusted certificate authority",
  params = {
    name = {type = "string", required = true, pattern = "^%w[%w_.-]*$", description = "the name of the file, without .crt"},
    pem = {type = "string", description = "the certificate; it may come as the attachment \"pem\" instead, in PEM or DER"},
    state = {type = "string", default = "present", enum = {"present", "absent"}},
  },
  os = {"linux"},
  needs = {
    "file:/usr/local/share/ca-certificates/", "file:/etc/ssl/", "file:/etc/pki/", "file:/etc/ca-certificates/",
    "file:/var/lib/ca-certificates/", "exec:update-ca-certificates", "exec:update-ca-trust", "exec:cat", "exec:date", "exec:sh",
  },

  run = function(p)
    local l = layout()
    local path = l.dir .. "/" .. p.name .. ".crt"
    if p.state == "absent" then
      local old = file.exists(path) and certificates(file.read(path))[1]
      local changed = file.remove(path) or dangling(l, path) ~= ""
      local result = {changed = changed, path = path}
      if changed then
        update(l, true)
        local bundle, code = bundle_of(l)
        if bundle ~= "" or code ~= 0 then
          check_loads(l, bundle, code)
        end
        local left = dangling(l, path)
        if left ~= "" then
          error("links to the certificate are left: " .. left)
        elseif old and contains(bundle, old) then
          result.still_trusted = true
          log.warn("the certificate is still trusted: it is in another file, too, or comes with the system")
        end
      end
      return result
    end
    local pem, der = one_certificate(p.pem or file.attachment("pem"))
    local changed = file.write(path, pem, {mode = "0644", parents = true})
    local bundle, code = bundle_of(l)
    if changed or bundle ~= "" and not contains(bundle, der) then
      update(l, false)
      changed = true
      bundle, code = bundle_of(l)
    end
    if bundle ~= "" or code ~= 0 then
      check_loads(l, bundle, code)
      if not contains(bundle, der) then
        error(l.bundle .. " does not have the certificate")
      end
    end
    return {changed = changed, path = path}
  end,
}
