-- Limits of the disk space that systemd's journal may take.

local PATH = "/etc/systemd/journald.conf.d/50-limits.conf"
local UNIT = "systemd-journald.service"

return script {
  name = "journald-limits",
  version = "1.0",
  description = "limit the size and the age of systemd's journal",
  params = {
    max_use = {type = "string", default = "500M", pattern = "^%d+[KMGT]?$", description = "the most disk space that it takes"},
    keep_free = {type = "string", default = "1G", pattern = "^%d+[KMGT]?$", description = "the disk space that it leaves free"},
    max_age = {type = "string", default = "1month", pattern = "^%d+%a*$", description = "the greatest age of its entries"},
    activate = {type = "boolean", default = true, description = "restart the journal now, if it runs"},
  },
  needs = {"file:/etc/systemd/journald.conf.d/", "exec:systemctl", "exec:true", "tx"},

  run = function(p)
    local text = table.concat({
      "[Journal]", "SystemMaxUse=" .. p.max_use, "SystemKeepFree=" .. p.keep_free, "MaxRetentionSec=" .. p.max_age, "",
    }, "\n")
    if file.exists(PATH) and file.read(PATH) == text then
      return {changed = false, path = PATH}
    end
    local restart = {"systemctl", "try-restart", UNIT}
    -- In an image nothing runs, so nothing is restarted.
    local is_active = {"systemctl", "is-active", "--quiet", UNIT}
    local runs = p.activate and exec.run(is_active, {readonly = true, check = false}).code == 0
    if runs then
      tx.on_rollback(restart) -- after the old file is restored
    end
    file.write(PATH, text, {mode = "0644", parents = true})
    if runs then
      exec.run(restart, {undo = {"true"}, plan = "restart the journal with the new limits"})
    end
    return {changed = true, path = PATH, activated = runs}
  end,
}
