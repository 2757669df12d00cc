-- Removes what copies of a machine must not share. Run it last, before an image is made.

return script {
  name = "image-cleanup",
  version = "1.0",
  description = "remove the identity, caches and logs of a machine before an image is made of it",
  params = {
    machine_id = {type = "boolean", default = true, description = "empty /etc/machine-id: each copy gets its own"},
    ssh_host_keys = {type = "boolean", default = true},
    logs = {type = "boolean", default = true},
    caches = {type = "boolean", default = true, description = "of APT and of users"},
    cloud_init = {type = "boolean", default = true, description = "the state of cloud-init, so that it runs again"},
  },
  needs = {"file:/"},

  run = function(p)
    local removed, emptied = 0, 0
    local function remove(pattern)
      for _, path in ipairs(file.glob(pattern)) do
        if file.remove(path, {recursive = true}) then
          removed = removed + 1
        end
      end
    end
    local function empty(path)
      if file.exists(path) and file.stat(path).type == "file" and file.write(path, "", {inplace = true}) then
        emptied = emptied + 1
      end
    end
    if p.machine_id then
      empty("/etc/machine-id")
      remove("/var/lib/dbus/machine-id")
      remove("/var/lib/systemd/random-seed")
    end
    if p.ssh_host_keys then
      remove("/etc/ssh/ssh_host_*_key")
      remove("/etc/ssh/ssh_host_*_key.pub")
    end
    if p.logs then
      remove("/var/log/*.gz")
      remove("/var/log/*.[0-9]")
      remove("/var/log/journal/*")
      for _, path in ipairs(file.glob("/var/log/*.log")) do
        empty(path)
      end
      for _, name in ipairs({"wtmp", "btmp", "lastlog", "syslog", "messages"}) do
        empty("/var/log/" .. name)
      end
    end
    if p.caches then
      remove("/var/cache/apt/archives/*.deb")
      remove("/var/cache/apt/*.bin")
      remove("/var/lib/apt/lists/*")
      remove("/root/.cache")
      remove("/root/.bash_history")
      remove("/home/*/.bash_history")
    end
    if p.cloud_init then
      remove("/var/lib/cloud/instance")
      remove("/var/lib/cloud/instances")
      remove("/var/lib/cloud/sem")
      remove("/var/log/cloud-init*.log")
    end
    return {changed = removed + emptied > 0, removed = removed, emptied = emptied}
  end,
}
