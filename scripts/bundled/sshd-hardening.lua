-- A stricter SSH server. What is asked for holds for every connection, or the script fails and names what is in its way:
-- sshd takes the first value of a setting, and a Match block goes before all others.

local DIR = "/etc/ssh/"
local PATH = DIR .. "sshd_config.d/00-hardening.conf"
local MAINS = {DIR .. "sshd_config", "/usr/etc/ssh/sshd_config"} -- the second is of openSUSE, read where there is no first
-- Where distributions keep the options that the server is started with.
local OPTIONS = {"/etc/default/ssh", "/etc/sysconfig/sshd", "/etc/sysconfig/ssh", "/etc/conf.d/sshd"}
local ALIASES = {
  challengeresponseauthentication = "kbdinteractiveauthentication", skeyauthentication = "kbdinteractiveauthentication",
}
-- What lets users in who give no password.
local WITHOUT_PASSWORD = {pubkeyauthentication = true, gssapiauthentication = true, hostbasedauthentication = true}
local ROOT_LOGIN = {["no"] = 0, ["forced-commands-only"] = 1, ["prohibit-password"] = 2, ["yes"] = 3}

-- Prints what the server would do, without a server that runs: sshd wants its directory, and a host key, which an image
-- does not have yet.
local SHOW = [[
mkdir -p /run/sshd 2>/dev/null
sshd=$(command -v sshd || echo /usr/sbin/sshd)
if ! ls /etc/ssh/ssh_host_*_key >/dev/null 2>&1; then
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  ssh-keygen -q -t ed25519 -N "" -f "$dir/key"
  set -- "$@" -h "$dir/key"
fi
"$sshd" "$@"]]

-- The words of a text as sshd splits the arguments of a line; # begins a comment.
local function words(text)
  local list, word, quote, i = {}, nil, nil, 1
  while i <= #text do
    local c, next = string.sub(text, i, i), string.sub(text, i + 1, i + 1)
    if c == "\\" and (next == "\\" or next == '"' or next == "'" or next == " " and not quote) then
      word, i = (word or "") .. next, i + 1
    elseif quote then
      if c == quote then
        quote = nil
      else
        word = word .. c
      end
    elseif c == '"' or c == "'" then
      word, quote = word or "", c
    elseif string.find(c, "%s") then
      list[#list + 1], word = word, nil
    elseif c == "#" and not word then
      break
    else
      word = (word or "") .. c
    end
    i = i + 1
  end
  list[#list + 1] = word
  return list
end

-- The keyword of a line in lower case, and its arguments; nil of a line that sets nothing.
local function parse(line)
  local key, rest = string.match(line, '^%s*"([^"]*)"%s*=?%s*(.*)$')
  if not key then
    key, rest = string.match(line, '^%s*([^%s="#][^%s="]*)%s*=?%s*(.*)$')
  end
  if key then
    key = string.lower(key)
    return ALIASES[key] or key, words(rest)
  end
end

-- A path without "." and "..", as text.
local function clean(path)
  local list = {}
  for name in string.gmatch(path, "[^/]+") do
    if name == ".." then
      table.remove(list)
    elseif name ~= "." then
      list[#list + 1] = name
    end
  end
  return "/" .. table.concat(list, "/")
end

-- What an Include names; as with glob(3), a wildcard does not stand for the dot at the beginning of a name.
local function included(pattern)
  if string.sub(pattern, 1, 1) ~= "/" then
    pattern = DIR .. pattern
  end
  pattern = clean(pattern)
  local hidden, list = string.find(pattern, "/%.[^/]*$"), {}
  for _, path in ipairs(file.glob(pattern)) do
    if hidden or not string.find(path, "/%.[^/]*$") then
      list[#list + 1] = path
    end
  end
  return list
end

-- Adds the settings of a file, and of those that it includes, in the order in which sshd reads them. outer is the Match
-- block that its Include stands in; a block of a file ends with the file.
local function read_config(path, outer, depth, out)
  if depth > 16 then
    error(path .. ": sshd does not include files to this depth")
  end
  local number, match = 0, outer
  for line in string.gmatch(file.read(path) .. "\n", "(.-)\n") do
    number = number + 1
    local key, args = parse(line)
    local entry = {where = path .. ":" .. number, file = path, key = key, args = args, match = match}
    entry.text = string.match(line, "^%s*(.-)%s*$")
    if key == "match" then
      match = {where = entry.where, text = entry.text, args = args, outer = outer}
      out.blocks[#out.blocks + 1] = match
    elseif key == "include" then
      for _, pattern in ipairs(args) do
        for _, name in ipairs(included(pattern)) do
          read_config(name, match, depth + 1, out)
        end
      end
    elseif key then
      out[#out + 1] = entry
    end
  end
end

-- The options that the server is started with; what they set goes before every file.
local function options(out)
  local list = {}
  for _, path in ipairs(OPTIONS) do
    local text = file.exists(path) and file.read(path) or ""
    for line in string.gmatch(text, "[^\n]+") do
      local name, value = string.match(line, "^%s*([%u_]+)=(.*)$")
      if name == "SSHD_OPTS" or name == "OPTIONS" then
        list = words(table.concat(words(value), " "))
        list.file = path
      end
    end
  end
  for i, word in ipairs(list) do
    local setting = word == "-o" and list[i + 1] or string.match(word, "^%-o(.+)$")
    if string.find(word, "^%-f") then
      error(list.file .. ": the server is started with " .. word .. ", and does not read " .. DIR .. "sshd_config")
    end
    if setting then
      local key, args = parse(setting)
      out[#out + 1] = {where = list.file, file = list.file, key = key, args = args, text = setting}
    end
  end
  return list
end

local function value_of(key, word)
  word = string.lower(word or "")
  if word == "without-password" then
    return "prohibit-password"
  end
  return key == "maxauthtries" and tostring(tonumber(word)) or word
end

-- Whether a value lets nobody in whom the wanted one keeps out.
local function as_strict(key, value, want)
  if value == want or value == "no" then
    return true
  elseif key == "maxauthtries" then
    return tonumber(value) ~= nil and tonumber(value) <= tonumber(want)
  end
  return key == "permitrootlogin" and ROOT_LOGIN[value] ~= nil and ROOT_LOGIN[value] <= ROOT_LOGIN[want]
end

local function within(list, set)
  for _, word in ipairs(list) do
    if not set[word] then
      return false
    end
  end
  return true
end

-- Whether a file is ours, also where it is reached through a link to its directory.
local function is_ours(path, text)
  return path == PATH or string.match(path, "[^/]*$") == string.match(PATH, "[^/]*$") and file.read(path) == text
end

-- Fails if a setting of the files goes before what is wanted. text is what our file has.
local function check_files(entries, want, groups, text)
  local found, first, read, only = {}, {}, false, nil
  for _, e in ipairs(entries) do
    local value = value_of(e.key, e.args[1])
    if is_ours(e.file, text) then
      read, only = read or not e.match, e.match
    end
    local bad = false
    if e.key == "allowgroups" and groups then
      bad = not within(e.args, groups)
    elseif want[e.key] and e.match then
      bad = not as_strict(e.key, value, want[e.key])
    elseif want[e.key] and not first[e.key] then
      first[e.key], bad = true, value ~= want[e.key]
    end
    if bad then
      found[#found + 1] = e.where .. ": " .. e.text .. (e.match and " (" .. e.match.text .. ")" or "")
    end
  end
  if not read and only then
    error(only.where .. ": " .. PATH .. " is included below " .. only.text .. " only")
  elseif not read then
    error(entries.main .. " does not include " .. PATH)
  elseif #found > 0 then
    error("overridden by " .. table.concat(found, "; "))
  end
end

local function glob_matches(word, pattern)
  pattern = string.gsub(pattern, "[%^%$%(%)%%%.%[%]%+%-]", "%%%0")
  pattern = string.gsub(string.gsub(pattern, "%*", ".*"), "%?", ".")
  return string.find(word, "^" .. pattern .. "$") ~= nil
end

local function split(text, by)
  local list = {}
  for word in string.gmatch(text, "[^" .. by .. "]+") do
    list[#list + 1] = word
  end
  return list
end

-- A name of a list that a list of patterns lets through; without names, one that is made of a pattern.
local function example(patterns, names)
  local yes, no = {}, {}
  for _, pattern in ipairs(split(patterns, ",")) do
    local negated = string.match(pattern, "^!(.*)$")
    table.insert(negated and no or yes, negated or pattern)
  end
  for _, pattern in ipairs(yes) do
    local candidates = names or {(string.gsub(string.gsub(pattern, "/%d+$", ""), "[*?]", "1"))}
    for _, name in ipairs(candidates) do
      local good = not names or glob_matches(name, pattern)
      for _, other in ipairs(no) do
        good = good and not glob_matches(name, other)
      end
      if good then
        return name
      end
    end
  end
end

-- A user who is in a group that the patterns mean; nil where none is known.
local function member(patterns)
  local function content(path)
    return file.exists(path) and file.read(path) or ""
  end
  local users, groups, ids = {}, {}, {}
  for line in string.gmatch(content("/etc/group"), "[^\n]+") do
    local name, id, list = string.match(line, "^([^:]+):[^:]*:(%d+):(.*)$")
    if name then
      groups[#groups + 1], users[name], ids[id] = name, split(list, ",")[1], name
    end
  end
  for line in string.gmatch(content("/etc/passwd"), "[^\n]+") do
    local name, id = string.match(line, "^([^:]+):[^:]*:[^:]*:(%d+):")
    if ids[id or ""] and not users[ids[id]] then
      users[ids[id]] = name
    end
  end
  local inhabited = {}
  for _, name in ipairs(groups) do
    if users[name] then
      inhabited[#inhabited + 1] = name
    end
  end
  return users[example(patterns, inhabited) or ""]
end

-- A connection that a Match block means, as sshd -C takes it; nil where none is found.
local function connection(block)
  local c = {user = "root", host = "192.0.2.1", addr = "192.0.2.1", laddr = "192.0.2.2", lport = "22"}
  local names = {
    user = "user", host = "host", address = "addr", localaddress = "laddr", localport = "lport", rdomain = "rdomain",
  }
  while block do
    local i = 1
    while i <= #block.args do
      local key, value = string.match(string.lower(block.args[i]), "^([^=]+)"), string.match(block.args[i], "=(.*)$")
      if key == "group" or names[key] then
        if not value then
          i, value = i + 1, block.args[i + 1] or ""
        end
        local name = names[key] or "user"
        c[name] = key == "group" and member(value) or key ~= "group" and example(value) or nil
        local v4 = (name == "addr" or name == "laddr") and c[name] and not string.find(c[name], ":", 1, true)
        while v4 and select(2, string.gsub(c[name], "%.", "")) < 3 do
          c[name] = string.gsub(c[name], "%.?$", ".1")
        end
        if not c[name] or string.find(c[name], "[,%s]") then
          return nil
        end
      elseif key ~= "all" then
        return nil -- a connection of this kind cannot be asked for
      end
      i = i + 1
    end
    block = block.outer
  end
  local list = {}
  for _, name in ipairs({"user", "host", "addr", "laddr", "lport", "rdomain"}) do
    list[#list + 1] = c[name] and name .. "=" .. c[name]
  end
  return table.concat(list, ",")
end

-- A connection that no Match block for a local port means; nil where there is no such block. Without one sshd -T fails then.
local function other_port(blocks)
  local taken, port, any = {}, 65535, false
  for _, block in ipairs(blocks) do
    for _, word in ipairs(block.args) do
      any, taken[string.match(word, "%d*$")] = any or string.find(string.lower(word), "^localport") ~= nil, true
    end
  end
  while taken[tostring(port)] do
    port = port - 1
  end
  return any and "lport=" .. port or nil
end

-- Fails unless sshd itself says that what is wanted holds. block is that of the Match blocks that is asked for; nil: none.
local function check_effect(start, blocks, block, want, groups)
  local args = {"sh", "-c", SHOW, "sshd", "-T"}
  for _, word in ipairs(start) do
    args[#args + 1] = word
  end
  local spec
  if block then
    spec = connection(block)
    if not spec then
      return
    end
  else
    spec = other_port(blocks)
  end
  if spec then
    args[#args + 1], args[#args + 2] = "-C", spec
  end
  -- A dry run, which has only pretended to write the file, does not ask.
  local out = exec.run(args, {readonly = true, plan = "sshd tells what it would do"}).stdout
  if out == "" then
    return
  end
  local is, allowed = {}, {}
  for line in string.gmatch(out, "[^\n]+") do
    local list = split(line, " ")
    local key = table.remove(list, 1)
    key = ALIASES[key] or key
    if key == "allowgroups" then
      for _, group in ipairs(list) do
        allowed[#allowed + 1] = group
      end
    elseif (want[key] or WITHOUT_PASSWORD[key]) and not is[key] then
      is[key] = value_of(key, list[1])
    end
  end
  local where = block and " for " .. block.where .. ": " .. block.text or ""
  for _, key in ipairs(want) do
    if not is[key] then
      error("sshd -T does not tell " .. key)
    elseif is[key] ~= want[key] and not (block and as_strict(key, is[key], want[key])) then
      error("not in effect" .. where .. ": sshd has " .. key .. " " .. is[key] .. ", not " .. want[key])
    end
  end
  local nobody = not block and want.passwordauthentication == "no" and is.pubkeyauthentication == "no"
  for key in pairs(WITHOUT_PASSWORD) do
    nobody = nobody and is[key] ~= "yes"
  end
  if nobody then
    error("nobody could log in: sshd takes no keys either (PubkeyAuthentication)")
  end
  if groups and (#allowed == 0 or not within(allowed, groups)) then
    error("not in effect" .. where .. ": sshd has allowgroups " .. table.concat(allowed, " "))
  end
end

-- The unit of the server that runs; distributions call it one or the other. In an image none does.
local function active(unit)
  for _, name in ipairs(unit and {unit} or {"ssh.service", "sshd.service"}) do
    local ok, status = pcall(service.status, name)
    if ok and status.running then
      return name
    elseif not ok and status.code ~= "not_found" and status.code ~= "unsupported" then
      error(status, 0)
    end
  end
end

return script {
  name = "sshd-hardening",
  version = "2.2",
  description = "keys only and no root passwords for the SSH server; fails where another setting overrides that",
  params = {
    permit_root_login = {type = "string", default = "prohibit-password",
      enum = {"no", "prohibit-password", "forced-commands-only", "yes"}},
    password_authentication = {type = "boolean", default = false},
    allow_groups = {type = "list", default = {}, description = "only members of these groups; empty: all users"},
    max_auth_tries = {type = "integer", default = 3, min = 1},
    unit = {
      type = "string", pattern = "^[%w@_.-]+%.service$",
      description = "the unit to reload; default: ssh.service or sshd.service, whichever runs",
    },
  },
  os = {"linux"},
  needs = {"file:/", "exec:sh", "service", "tx"},

  run = function(p)
    local groups
    for _, group in ipairs(p.allow_groups) do
      if type(group) ~= "string" or not string.find(group, "^[%w_][%w_.-]*$") then
        error("allow_groups: " .. tostring(group) .. " is no group")
      end
      groups = groups or {}
      groups[group] = true
    end
    local lines, want = {}, {}
    local function set(name, value)
      local key = string.lower(name)
      lines[#lines + 1], want[#want + 1], want[key] = name .. " " .. value, key, value
    end
    local passwords = p.password_authentication and "yes" or "no"
    set("PermitRootLogin", p.permit_root_login)
    set("PasswordAuthentication", passwords)
    set("KbdInteractiveAuthentication", passwords)
    set("PermitEmptyPasswords", "no")
    set("MaxAuthTries", string.format("%d", p.max_auth_tries))
    set("X11Forwarding", "no")
    if groups then
      lines[#lines + 1] = "AllowGroups " .. table.concat(p.allow_groups, " ")
    end
    local text = table.concat(lines, "\n") .. "\n"

    local new = not file.exists(PATH) or file.read(PATH) ~= text
    local unit = new and active(p.unit)
    local changed = file.write(PATH, text, {mode = "0600", parents = true})

    if file.exists("/proc/self") and not file.exists("/run/sshd") then
      file.mkdir("/run/sshd", {mode = "0755"}) -- sshd wants it, and only a server that runs has it; not in an image
    end
    local entries = {blocks = {}, main = file.exists(MAINS[1]) and MAINS[1] or MAINS[2]}
    local start = options(entries)
    read_config(entries.main, nil, 0, entries)
    check_files(entries, want, groups, text)
    check_effect(start, entries.blocks, nil, want, groups)
    for _, block in ipairs(entries.blocks) do
      check_effect(start, entries.blocks, block, want, groups)
    end

    local result = {changed = changed, path = PATH, reloaded = false}
    if unit then
      tx.notify(unit, "reload-or-restart")
      result.reloaded, result.unit = true, unit
    elseif new then
      result.note = "no unit of a server runs: one that was started otherwise has its old settings until it starts again"
    end
    return result
  end,
}
