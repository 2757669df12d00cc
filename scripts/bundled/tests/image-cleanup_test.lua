for path, content in pairs({
  ["/etc/machine-id"] = "0123\n", ["/etc/ssh/ssh_host_rsa_key"] = "k", ["/etc/ssh/ssh_host_rsa_key.pub"] = "k",
  ["/etc/ssh/sshd_config"] = "Port 22\n", ["/var/log/syslog"] = "a line\n", ["/var/log/syslog.1"] = "old",
  ["/var/log/dpkg.log"] = "x", ["/var/log/journal/0123/system.journal"] = "x", ["/var/lib/apt/lists/deb"] = "x",
  ["/root/.bash_history"] = "passwd", ["/home/me/.bash_history"] = "x", ["/home/me/work"] = "mine",
}) do
  file.write(path, content, {parents = true})
end

return {
  takes_away_what_copies_must_not_have = function()
    local run = test.run(nil, {foretold = true})
    assert(run.result.removed == 7 and run.result.emptied == 3, json.encode(run.result))
    assert(file.read("/etc/machine-id") == "" and file.read("/var/log/dpkg.log") == "")
    assert(file.read("/etc/ssh/sshd_config") == "Port 22\n" and file.read("/home/me/work") == "mine")
    local gone = {"/etc/ssh/ssh_host_rsa_key", "/var/log/syslog.1", "/var/log/journal/0123", "/root/.bash_history"}
    for _, path in ipairs(gone) do
      assert(not file.exists(path), path)
    end
  end,

  takes_away_all_identity_of_a_machine = function()
    local gone = {
      "/var/lib/dbus/machine-id", "/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret",
      "/boot/efi/loader/random-seed",
      "/var/lib/misc/random-seed", "/etc/hostid", "/etc/iscsi/initiatorname.iscsi", "/etc/nvme/hostnqn",
      "/var/lib/dhcp/dhclient.eth0.leases", "/var/lib/dhclient/dhclient-eth0.lease", "/var/lib/dhcpcd/duid",
      "/var/lib/wicked/duid.xml", "/var/lib/NetworkManager/secret_key", "/var/lib/NetworkManager/timestamps",
      "/var/lib/NetworkManager/internal-1-eth0.lease", "/etc/udev/rules.d/70-persistent-net.rules",
      "/etc/udev/rules.d/z25_persistent-net.rules", "/etc/NetworkManager/system-connections/wg.nmconnection",
      "/etc/ssh/ssh_host_ed25519_key-cert.pub", "/etc/pki/consumer/cert.pem", "/etc/zypp/credentials.d/SCCcredentials",
      "/etc/krb5.keytab", "/var/lib/quantix-kvm/key", "/var/lib/quantix-kvm/tx/done/1", "/home/me/.zsh_history",
      "/var/cache/dnf/x/repodata", "/var/cache/zypp/raw/x", "/var/lib/cloud/data/instance-id",
      "/var/log/messages-20260101", "/var/log/secure-20260101.xz", "/var/log/audit/audit.log.1", "/var/log/YaST2/y2log-1.gz",
      "/var/lib/systemd/coredump/core.zst", "/var/lib/yum/uuid", "/var/lib/zerotier-one/identity.secret",
      "/var/ossec/etc/client.keys", "/var/lib/amazon/ssm/Vault/Store/x", "/var/lib/waagent/provisioned", "/etc/chef/client.pem",
      "/etc/gitlab-runner/.runner_system_id", "/var/lib/filebeat/meta.json", "/opt/consul/node-id",
      "/etc/cloud/cloud.cfg.d/99-installer.cfg",
    }
    local emptied = {
      "/var/log/messages", "/var/log/secure", "/var/log/audit/audit.log", "/var/log/zypp/history", "/var/log/YaST2/y2log",
      "/var/log/wtmp", "/var/log/anaconda/syslog", "/var/log/apt/term.log",
    }
    local kept = {
      "/var/lib/dhcp/dhcpd.leases", "/var/lib/NetworkManager/NetworkManager.state", "/etc/udev/rules.d/70-mine.rules",
      "/etc/NetworkManager/system-connections/lan.nmconnection", "/etc/netplan/50-cloud-init.yaml", "/home/me/.ssh/id_ed25519",
    }
    for _, list in ipairs({gone, emptied, kept}) do
      for _, path in ipairs(list) do
        file.write(path, "private-key=x\n", {parents = true})
      end
    end
    file.write("/etc/NetworkManager/system-connections/lan.nmconnection",
      "[ethernet]\nmac-address=52:54:00:00:00:01\nmtu=9000\n")
    file.write("/etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\nHWADDR=52:54:00:00:00:01\nUUID=1-2\n",
      {parents = true})
    local run = test.run(nil, {foretold = true})
    assert(run.result.left == nil and #run.log == 0, json.encode(run.result))
    for _, path in ipairs(gone) do
      assert(not file.exists(path), path)
    end
    for _, path in ipairs(emptied) do
      assert(file.read(path) == "", path)
    end
    for _, path in ipairs(kept) do
      assert(file.exists(path) and file.read(path) ~= "", path)
    end
    assert(file.read("/etc/NetworkManager/system-connections/lan.nmconnection") == "[ethernet]\nmtu=9000\n")
    assert(file.read("/etc/sysconfig/network-scripts/ifcfg-eth0") == "DEVICE=eth0\n")
  end,

  has_debian_make_what_nothing_else_makes = function()
    file.write("/etc/debian_version", "12\n")
    file.write("/etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.1\n", {parents = true})
    file.mkdir("/var/lib/dbus")
    file.symlink("/etc/machine-id", "/var/lib/dbus/machine-id")
    for _, path in ipairs({"/usr/sbin/sshd", "/usr/bin/ssh-keygen", "/lib/systemd/systemd"}) do
      file.write(path, "", {parents = true})
    end
    test.run(nil, {foretold = true})
    assert(file.read("/etc/iscsi/initiatorname.iscsi") == "GenerateName=yes\n")
    assert(file.stat("/var/lib/dbus/machine-id").type == "symlink")
    assert(file.read("/etc/systemd/system/ssh-host-keys.service"):find("\nExecStart=/usr/bin/ssh-keygen -A\n", 1, true))
    local link = file.stat("/etc/systemd/system/multi-user.target.wants/ssh-host-keys.service")
    assert(link.target == "/etc/systemd/system/ssh-host-keys.service")
  end,

  leaves_host_keys_to_what_makes_them = function()
    for _, path in ipairs({"/usr/sbin/sshd", "/usr/bin/ssh-keygen"}) do
      file.write(path, "", {parents = true})
    end
    local run = test.run()
    assert(run.log[1]:find("nothing is known here that makes SSH host keys"), run.log[1])
    file.write("/usr/lib/systemd/systemd", "", {parents = true})
    for path, text in pairs({
      ["/usr/lib/systemd/system/sshd.service"] = "[Unit]\nWants=sshd-keygen.target\n", -- Fedora
      ["/usr/lib/systemd/system/sshdgenkeys.service"] = "[Service]\nExecStart=/usr/bin/ssh-keygen -A\n", -- Arch
      ["/lib/systemd/system/sshd.service"] = "[Service]\nExecStartPre=/usr/sbin/sshd-gen-keys-start\n", -- SUSE
      ["/etc/systemd/system/mine.service"] = "[Service]\nExecStart=ssh-keygen -A\n",
    }) do
      file.write(path, text, {parents = true})
      assert(#test.run().log == 0 and not file.exists("/etc/systemd/system/ssh-host-keys.service"), path)
      file.remove(path)
    end
    local debian = "[Service]\n# ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n"
    file.write("/lib/systemd/system/ssh.service", debian, {parents = true})
    test.run()
    assert(file.exists("/etc/systemd/system/ssh-host-keys.service"))
  end,

  has_cloud_init_write_the_network_anew = function()
    file.write("/etc/netplan/50-cloud-init.yaml", "macaddress", {parents = true})
    local installer = {"/etc/netplan/00-installer-config.yaml", "/etc/cloud/cloud.cfg.d/subiquity-disable-cloudinit-networking.cfg"}
    for _, path in ipairs(installer) do
      file.write(path, "network: {}\n", {parents = true})
    end
    file.write("/usr/bin/cloud-init", "")
    file.write("/etc/cloud/cloud-init.disabled", "", {parents = true})
    test.run()
    assert(file.exists("/etc/netplan/50-cloud-init.yaml"))
    file.remove("/etc/cloud/cloud-init.disabled")
    for _, text in ipairs({"network: {config: disabled}\n", "x: 1\nnetwork:\n  config: 'disabled' # x\n"}) do
      file.write("/etc/cloud/cloud.cfg.d/99-own.cfg", text)
      test.run()
      assert(file.exists("/etc/netplan/50-cloud-init.yaml") and file.exists(installer[1]))
    end
    file.write("/etc/cloud/cloud.cfg.d/99-own.cfg", "# network: {config: disabled}\n")
    file.write(installer[2], "network: {config: disabled}\n")
    test.run()
    assert(not file.exists("/etc/netplan/50-cloud-init.yaml"))
    assert(not file.exists(installer[1]) and not file.exists(installer[2]))
  end,

  leaves_what_it_is_told_to = function()
    file.write("/var/lib/dhcp/dhclient.leases", "x", {parents = true})
    test.run({machine_id = false, ssh_host_keys = false, logs = false, network = false, registration = false})
    assert(file.exists("/var/lib/dhcp/dhclient.leases"))
    assert(file.read("/etc/machine-id") == "0123\n" and file.exists("/etc/ssh/ssh_host_rsa_key"))
    assert(file.exists("/var/log/syslog.1") and not file.exists("/root/.bash_history"))
  end,

  survives_a_crash = function()
    test.crash()
  end,
}
