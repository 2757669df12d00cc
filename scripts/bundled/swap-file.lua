-- A file to swap to, used now and at every boot.

return script {
  name = "swap-file",
  version = "1.0",
  description = "make a swap file and use it",
  params = {
    path = {type = "string", default = "/swapfile", pattern = "^/[%w_./-]+$"},
    size_mib = {type = "integer", default = 1024, description = "its size in MiB, if it has to be made"},
  },
  needs = {"file:/", "exec"},

  run = function(p)
    if p.size_mib < 1 or p.size_mib > 1024 * 1024 then
      error("size_mib is not between 1 and 1048576")
    end
    local made = not file.exists(p.path)
    if made then
      local count = string.format("count=%d", p.size_mib)
      exec.run({"dd", "if=/dev/zero", "of=" .. p.path, "bs=1M", count, "status=none", "conv=fsync"}, {
        touches = {p.path},
        plan = p.path .. " is made, of zeros",
      })
      file.chmod(p.path, "0600")
      exec.run({"mkswap", p.path}, {touches = {p.path}, plan = p.path .. " becomes swap space"})
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
      local off = {"sh", "-c", "swapoff " .. p.path .. " 2>/dev/null || true"}
      exec.run({"swapon", p.path}, {undo = off, plan = "it is used"})
    end
    return {changed = made or changed or not used, path = p.path}
  end,
}
