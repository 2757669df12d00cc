-- A swap file, used now and at every boot. A swap that is in use already stays in use, whatever happens.

-- Makes the file. A single command: a second one that touches the file would first save all of it. On btrfs a swap file must
-- not be copied on write, which can be set only while it is empty.
local MAKE = [[
umask 077
: > "$1"
if [ "$(stat -f -c %t "$1")" = 9123683e ]; then
  chattr +C "$1"
fi
dd if=/dev/zero of="$1" bs=1M count="$2" conv=fsync,notrunc status=none
mkswap "$1"]]

-- Runs also where swapon failed or never ran.
local OFF = [[
while read -r name rest; do
  if [ "$name" = "$2" ]; then
    exec swapoff "$1"
  fi
done < /proc/swaps]]

-- A dry run does not run a command that has a plan.
local function is_dry_run()
  return exec.run({"echo", "no"}, {readonly = true, plan = "it is looked at"}).stdout == ""
end

-- A path without links and "..", as the kernel tells it; the last element need not be there.
local function resolve(path)
  local left, links = {path}, 0
  local at = ""
  while #left > 0 do
    local name, rest = string.match(table.remove(left), "^/*([^/]*)(.*)$")
    if string.find(rest, "[^/]") then
      left[#left + 1] = rest
    end
    local here = at .. "/" .. name
    if name == ".." then
      at = string.gsub(at, "/[^/]*$", "")
    elseif name ~= "" and name ~= "." then
      at = here
      if file.exists(here) and file.stat(here).type == "symlink" then
        links = links + 1
        if links > 40 then
          error(path .. ": too many symbolic links")
        end
        local target = file.stat(here).target
        at = string.sub(target, 1, 1) == "/" and "" or string.gsub(here, "/[^/]*$", "")
        left[#left + 1] = target
      end
    end
  end
  return at
end

-- /proc/swaps and /etc/fstab have one field beside the other, so a blank in one is written as its number.
local function escape(path)
  return (string.gsub(path, "[%s\\#]", function(c)
    return string.format("\\%03o", string.byte(c))
  end))
end

local function unescape(field)
  return (string.gsub(field, "\\(%d%d%d)", function(digits)
    return string.char(tonumber(digits, 8))
  end))
end

local function quoted(text)
  return (string.gsub(text, "[%p%s]", "\\%0"))
end

-- The swap that is in use and is the file, also by another name of it; nil if none is.
local function in_use(real)
  for line in string.gmatch(file.read("/proc/swaps"), "[^\n]+") do
    local name, kind = string.match(line, "^(/%S+)%s+(%S+)")
    if name and unescape(name) == real then
      return real
    elseif kind == "file" and file.exists(real) then
      local same = {"sh", "-c", 'test "$1" -ef "$2" || echo other', "sh", unescape(name), real}
      if exec.run(same, {readonly = true}).stdout == "" then
        return unescape(name)
      end
    end
  end
end

-- Puts it into fstab unless a line there has it used at every boot.
local function at_boot(real)
  local text, old = file.exists("/etc/fstab") and file.read("/etc/fstab") or "", nil
  for line in string.gmatch(text, "[^\n]+") do
    local what, _, kind, options = string.match(line, "^%s*([^%s#]%S*)%s+(%S+)%s+(%S+)%s*(%S*)")
    if what and string.find(what, "^/") and resolve(unescape(what)) == real then
      if kind == "swap" and not string.find("," .. options .. ",", ",noauto,", 1, true) then
        return false
      end
      old = line
    end
  end
  local line = {line = escape(real) .. " none swap sw 0 0", mode = "0644"}
  if old then
    line.match = "^" .. quoted(old) .. "$"
  end
  if file.exists("/etc/fstab") then
    line.mode = nil
  end
  return file.line("/etc/fstab", line)
end

return script {
  name = "swap-file",
  version = "2.0",
  description = "create a swap file and use it",
  params = {
    path = {type = "string", default = "/swapfile", pattern = "^/[%w_./-]+$"},
    size_mib = {type = "integer", default = 1024, description = "its size in MiB, if it does not exist yet"},
  },
  os = {"linux"},
  needs = {"file:/", "exec"},

  run = function(p)
    if p.size_mib < 1 or p.size_mib > 1024 * 1024 then
      error("size_mib is not between 1 and 1048576")
    end
    local real = resolve(p.path)
    local made = not file.exists(real)
    if not made and file.stat(real).type ~= "file" then
      error(real .. " is a " .. file.stat(real).type)
    end
    local size = not made and file.stat(real).size
    local live = file.exists("/proc/swaps") -- nothing is used in an image
    local used = live and in_use(real)
    local changed = made
    if made then
      exec.run({"sh", "-ec", MAKE, "sh", real, string.format("%d", p.size_mib)}, {
        touches = {real}, plan = real .. " is created as swap space",
      })
    elseif live and not used then
      changed = file.chmod(real, "0600") -- what was in memory is nobody's to read
    end
    changed = at_boot(real) or changed
    if live and not used then
      exec.run({"swapon", real}, {undo = {"sh", "-c", OFF, "sh", real, escape(real)}, plan = "use " .. real .. " as swap"})
      if not in_use(real) and not is_dry_run() then
        error("swapon succeeded, and " .. real .. " is not in use")
      end
      changed, used = true, real
    end
    local result = {changed = changed, path = p.path, file = real, in_use = used and true or false}
    if size and size ~= p.size_mib * 2^20 then
      result.note = "the file is there with " .. math.floor(size / 2^20) .. " MiB, and keeps its size"
    end
    return result
  end,
}
