-- A swap file, used now and at every boot.

return script {
  name = "swap-file",
  version = "1.0",
  description = "create a swap file and use it",
  params = {
    path = {type = "string", default = "/swapfile", pattern = "^/[%w_./-]+$"},
    size_mib = {type = "integer", default = 1024, description = "its size in MiB, if it does not exist yet"},
  },
  needs = {"file:/", "exec"},

  run = function(p)
    if p.size_mib < 1 or p.size_mib > 1024 * 1024 then
      error("size_mib is not between 1 and 1048576")
    end
    local made = not file.exists(p.path)
    if made then
      -- A single command: a second one that touches the file would first save all of it.
      exec.run({
        "sh", "-ec", 'umask 077; dd if=/dev/zero of="$1" bs=1M count="$2" status=none conv=fsync; mkswap "$1"',
        "sh", p.path, string.format("%d", p.size_mib),
      }, {touches = {p.path}, plan = p.path .. " is created as swap space"})
    end
    local changed = file.line("/etc/fstab", {
      line = p.path .. " none swap sw 0 0",
      match = "^\\s*" .. string.gsub(p.path, "%.", "\\.") .. "\\s",
      mode = "0644",
    })
    local used = false
    for line in string.gmatch(file.read("/proc/swaps"), "[^\n]+") do
      used = used or string.match(line, "^%S+") == p.path
    end
    if not used then
      exec.run({"swapon", p.path}, {
        undo = {"swapoff", p.path}, undo_if = {"grep", "-q", "^" .. string.gsub(p.path, "%.", "\\.") .. " ", "/proc/swaps"},
        plan = "use " .. p.path .. " as swap",
      })
    end
    return {changed = made or changed or not used, path = p.path}
  end,
}
