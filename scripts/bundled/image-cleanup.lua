-- Removes what copies of a machine must not share. Run it last, before an image is made.

-- What makes one machine of a system: its own numbers, seeds and secrets. Each is made again when it is missing.
local MACHINE = {
  "/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret", "/var/lib/urandom/random-seed", "/var/lib/random-seed",
  "/var/lib/misc/random-seed", "/var/lib/seedrng/*", "/boot/loader/random-seed", "/boot/efi/loader/random-seed",
  "/efi/loader/random-seed", "/etc/hostid", "/etc/nvme/hostnqn", "/etc/nvme/hostid", "/etc/lvm/devices/system.devices",
  "/var/lib/fwupd/pki/*", "/var/lib/yum/uuid", "/etc/sysconfig/hw-uuid",
  "/etc/docker/key.json", "/var/lib/docker/engine-id", "/var/lib/whoopsie/whoopsie-id",
  "/etc/cockpit/ws-certs.d/0-self-signed*",
  "/var/lib/quantix-kvm/key", "/var/lib/quantix-kvm/tx/done/*", "/var/lib/quantix-kvm/jobs/*", -- of an agent that does not run
}
-- What it was given or chose in its networks.
local NETWORK = {
  "/var/lib/dhcp/dhclient*", "/var/lib/dhcp3/dhclient*", "/var/lib/dhclient/*", "/var/lib/dhcpcd/*", "/var/lib/dhcpcd5/*",
  "/etc/dhcpcd.duid", "/etc/dhcpcd.secret", "/var/lib/wicked/*", "/var/lib/NetworkManager/secret_key",
  "/var/lib/NetworkManager/timestamps", "/var/lib/NetworkManager/seen-bssids", "/var/lib/NetworkManager/*.lease*",
  "/var/lib/NetworkManager/NetworkManager-intern.conf", "/var/lib/udhcpc/*", "/var/lib/connman/*.lease",
  "/etc/udev/rules.d/*persistent-net*.rules", "/etc/udev/rules.d/*persistent-cd*.rules",
}
-- By what others know it: subscriptions, domains, and what manages it.
local REGISTRATION = {
  "/etc/pki/consumer/*", "/etc/pki/entitlement/*", "/var/lib/rhsm/facts/*", "/etc/sysconfig/rhn/systemid",
  "/etc/insights-client/machine-id", "/etc/SUSEConnect", "/etc/zypp/credentials.d/SCCcredentials",
  "/var/lib/zypp/AnonymousUniqueId", "/var/lib/ubuntu-advantage/private/*", "/etc/krb5.keytab", "/var/lib/sss/db/*",
  "/var/lib/sss/secrets/*", "/var/lib/samba/private/secrets.tdb", "/etc/salt/minion_id", "/etc/salt/pki/minion/minion.*",
  "/etc/puppetlabs/puppet/ssl/*", "/var/lib/puppet/ssl/*", "/var/lib/tailscale/tailscaled.state",
  "/var/lib/zerotier-one/identity.*", "/var/lib/teleport/host_uuid", "/var/lib/landscape/client/*", "/var/ossec/etc/client.keys",
  "/var/lib/amazon/ssm/registration", "/var/lib/amazon/ssm/Vault", "/var/lib/waagent/*", "/etc/chef/client.pem",
  "/etc/cinc/client.pem", "/etc/gitlab-runner/.runner_system_id", "/opt/consul/node-id", "/var/lib/consul/node-id",
  "/var/lib/*beat/meta.json",
}
local CACHES = {
  "/var/cache/apt/archives/*.deb", "/var/cache/apt/*.bin", "/var/lib/apt/lists/*", "/var/cache/dnf/*", "/var/cache/libdnf5/*",
  "/var/cache/yum/*", "/var/cache/zypp/packages/*", "/var/cache/zypp/raw/*", "/var/cache/zypp/solv/*", "/var/cache/apk/*",
  "/var/cache/pacman/pkg/*", "/root/.cache",
}
local HISTORIES = {
  ".bash_history", ".zsh_history", ".ash_history", ".sh_history", ".python_history", ".lesshst", ".viminfo", ".wget-hsts",
}
-- The first of these is of Ubuntu's installer, and lets cloud-init look at no source of data.
local CLOUD_INIT = {
  "/etc/cloud/cloud.cfg.d/99-installer.cfg",
  "/var/lib/cloud/instance", "/var/lib/cloud/instances", "/var/lib/cloud/data", "/var/lib/cloud/sem",
  "/var/log/cloud-init*.log",
}
-- What cloud-init writes anew of the network, for the hardware that it finds; and what Ubuntu's installer wrote of that of its own
-- machine, and to keep cloud-init from it.
local CLOUD_NETWORK = {
  "/etc/netplan/50-cloud-init.yaml", "/etc/network/interfaces.d/50-cloud-init*", "/etc/systemd/network/10-cloud-init-*.network",
  "/etc/NetworkManager/system-connections/cloud-init-*.nmconnection",
  "/etc/netplan/00-installer-config*.yaml", "/etc/cloud/cloud.cfg.d/subiquity-disable-cloudinit-networking.cfg",
  "/etc/cloud/cloud.cfg.d/90-installer-network.cfg",
}
local LOGS = {
  "/var/log/journal/*", "/var/crash/*", "/var/lib/systemd/coredump/*", "/var/spool/abrt/*", "/var/lib/lastlog/*",
  "/var/lib/wtmpdb/*",
}
-- A log that was put aside: syslog.1, syslog.2.gz, messages-20260101, boot.log-20260101.xz, Xorg.0.log.old
local ASIDE = {"%.gz$", "%.xz$", "%.bz2$", "%.zst$", "%.old$", "%.%d+$", "%-%d%d%d%d%d%d%d%d$", "%-%d%d%d%d%d%d%d%d%-%d+$"}

local KEY_UNIT = "/etc/systemd/system/ssh-host-keys.service"
local KEY_SERVICE = [[
[Unit]
Description=SSH host keys of this machine
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key
DefaultDependencies=no
RequiresMountsFor=/etc/ssh
After=local-fs.target
Before=ssh.service sshd.service ssh.socket sshd.socket shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
]]

local function any(paths)
  for _, path in ipairs(paths) do
    if #file.glob(path) > 0 then
      return true
    end
  end
  return false
end

-- Whether cloud-init writes the network of a copy: it is there, and no file that stays keeps it from that.
local function writes_network()
  if not file.exists("/usr/bin/cloud-init") or file.exists("/etc/cloud/cloud-init.disabled") then
    return false
  end
  local removed = {}
  for _, path in ipairs(CLOUD_NETWORK) do
    removed[path] = true
  end
  for _, pattern in ipairs({"/etc/cloud/cloud.cfg", "/etc/cloud/cloud.cfg.d/*.cfg"}) do
    for _, path in ipairs(file.glob(pattern)) do
      local text = not removed[path] and file.stat(path).type == "file" and file.read(path) or ""
      text = string.gsub("\n" .. text, "#[^\n]*", "")
      if string.find(text, "\nnetwork:[%s{]*[\"']?config[\"']?:%s*[\"']?disabled") then
        return false
      end
    end
  end
  return true
end

-- Whether something makes host keys at the next boot where there are none. Debian makes them only when the package is
-- installed.
local function keys_come_back()
  if any({"/sbin/openrc", "/usr/sbin/openrc"}) then
    return true
  end
  for _, units in ipairs({"/usr/lib/systemd/system/ssh*", "/lib/systemd/system/ssh*", "/etc/systemd/system/*.service"}) do
    for _, path in ipairs(file.glob(units)) do
      if path ~= KEY_UNIT and file.stat(path).type == "file" then
        local text = "\n" .. file.read(path)
        if string.find(text, "\n[^#;\n]*ssh[%w-]*keygen") or string.find(text, "\n[^#;\n]*gen%-keys") then
          return true
        end
      end
    end
  end
  return false
end

-- Has a unit make them, where nothing else does.
local function make_keys_come_back()
  if keys_come_back() or not any({"/usr/sbin/sshd"}) then
    return false
  end
  if not any({"/usr/lib/systemd/systemd", "/lib/systemd/systemd"}) or not file.exists("/usr/bin/ssh-keygen") then
    log.warn("nothing is known here that makes SSH host keys at the first boot of a copy")
    return false
  end
  local changed = file.write(KEY_UNIT, KEY_SERVICE, {mode = "0644", parents = true})
  local wants = "/etc/systemd/system/multi-user.target.wants"
  changed = file.mkdir(wants, {parents = true}) or changed
  return file.symlink(KEY_UNIT, wants .. "/ssh-host-keys.service") or changed
end

return script {
  name = "image-cleanup",
  version = "2.1",
  description = "remove the identity, caches and logs of a machine before an image is made of it",
  params = {
    machine_id = {
      type = "boolean", default = true,
      description = "empty /etc/machine-id, remove random seeds and secrets: each copy gets its own",
    },
    ssh_host_keys = {type = "boolean", default = true, description = "each copy makes its own at its first boot"},
    network = {type = "boolean", default = true, description = "leases, keys, and names and addresses of the hardware"},
    registration = {
      type = "boolean", default = true, description = "of subscriptions, in domains, and at what manages machines",
    },
    logs = {type = "boolean", default = true},
    caches = {type = "boolean", default = true, description = "of package managers and of users"},
    cloud_init = {
      type = "boolean", default = true,
      description = "the state of cloud-init, so that it runs again; where it writes the network, copies need a source of data",
    },
  },
  os = {"linux"},
  needs = {"file:/"},

  run = function(p)
    local removed, emptied, made = 0, 0, false
    local done = {}
    -- What is an agent's own that runs is refused; it drops that itself when it starts as another machine.
    local function refused(err)
      if type(err) ~= "table" or err.code ~= "refused" then
        error(err, 0)
      end
    end
    local function remove(patterns)
      for _, pattern in ipairs(patterns) do
        done[#done + 1] = pattern
        for _, path in ipairs(file.glob(pattern)) do
          local ok, changed = pcall(file.remove, path, {recursive = true})
          if not ok then
            refused(changed)
          elseif changed then
            removed = removed + 1
          end
        end
      end
    end
    local function empty(path)
      if file.exists(path) and file.stat(path).type == "file" then
        local ok, changed = pcall(file.write, path, "", {inplace = true})
        if not ok then
          refused(changed)
        elseif changed then
          emptied = emptied + 1
        end
      end
    end
    -- Takes lines out of the files of a pattern.
    local function without(pattern, lines)
      for _, path in ipairs(file.glob(pattern)) do
        if file.stat(path).type == "file" and file.line(path, {match = lines, state = "absent"}) then
          emptied = emptied + 1
        end
      end
    end
    local function clean_logs(dir)
      for _, entry in ipairs(file.list(dir)) do
        local aside = false
        for _, pattern in ipairs(ASIDE) do
          aside = aside or string.find(entry.name, pattern) ~= nil
        end
        if entry.type == "directory" and entry.path ~= "/var/log/journal" then
          clean_logs(entry.path)
        elseif entry.type == "file" and aside then
          local ok, changed = pcall(file.remove, entry.path)
          removed = removed + (ok and changed and 1 or 0)
          if not ok then
            refused(changed)
          end
        elseif entry.type == "file" and entry.size > 0 then
          empty(entry.path)
        end
      end
    end

    if p.machine_id then
      empty("/etc/machine-id")
      if file.exists("/var/lib/dbus/machine-id") and file.stat("/var/lib/dbus/machine-id").type == "file" then
        remove({"/var/lib/dbus/machine-id"}) -- a link leads to the other one
      end
      remove(MACHINE)
      if file.exists("/usr/lib/systemd/system/httpd-init.service") then -- which makes them
        remove({"/etc/pki/tls/private/localhost.key", "/etc/pki/tls/certs/localhost.crt"})
      end
      if file.exists("/etc/debian_version") and file.exists("/etc/iscsi/initiatorname.iscsi") then
        made = file.write("/etc/iscsi/initiatorname.iscsi", "GenerateName=yes\n") -- the next start makes one
      else
        remove({"/etc/iscsi/initiatorname.iscsi"})
      end
    end
    if p.ssh_host_keys then
      remove({"/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_*_key.pub", "/etc/ssh/ssh_host_*_key-cert.pub"})
      made = make_keys_come_back() or made
    end
    if p.network then
      remove(NETWORK)
      without("/etc/NetworkManager/system-connections/*", "^(mac-address|cloned-mac-address|timestamp|seen-bssids)\\s*=")
      without("/etc/sysconfig/network-scripts/ifcfg-*", "^(HWADDR|UUID|DHCP_CLIENT_ID)\\s*=")
      for _, path in ipairs(file.glob("/etc/NetworkManager/system-connections/*")) do
        if file.stat(path).type == "file" and string.find("\n" .. file.read(path), "\nprivate%-key%s*=") then
          remove({path}) -- the key of one machine, as of WireGuard
        end
      end
    end
    if p.registration then
      remove(REGISTRATION)
    end
    if p.caches then
      remove(CACHES)
      for _, name in ipairs(HISTORIES) do
        remove({"/root/" .. name, "/home/*/" .. name})
      end
    end
    if p.cloud_init then
      if p.network and writes_network() then
        remove(CLOUD_NETWORK)
      end
      remove(CLOUD_INIT)
    end
    if p.logs then
      remove(LOGS)
      if file.exists("/var/log") then
        clean_logs("/var/log")
      end
    end

    local left = json.array()
    for _, pattern in ipairs(done) do
      for _, path in ipairs(file.glob(pattern)) do
        left[#left + 1] = path
      end
    end
    local result = {changed = removed + emptied > 0 or made, removed = removed, emptied = emptied}
    if #left > 0 then
      result.left = left
      log.warn("what runs has these, or has made them again: " .. table.concat(left, ", "))
    end
    if file.exists("/proc/self") then
      result.note = "a system that runs writes seeds, leases and logs again when it shuts down: " ..
        "switch it off at once, or clean the image instead"
    end
    return result
  end,
}
