return script {
  name = "provision", version = "1.0", description = "configure the demo application",
  params = {
    site = { type = "string", required = true },
    port = { type = "integer", default = 80 },
  },
  run = function(p)
    progress(0.2, "configuration")
    file.write("/etc/app/app.conf", "site = " .. p.site .. "\nlisten = " .. p.port .. "\n", { mode = "0640", backup = true })
    account.create("app", { system = true, comment = "runs " .. p.site, home = "/srv/app", create_home = false })
    progress(0.5, "unit")
    local changed = file.template("/etc/systemd/system/app.service", [[
[Unit]
Description=demo application for {{site}}

[Service]
User=app
ExecStart=/usr/bin/app --config /etc/app/app.conf

[Install]
WantedBy=multi-user.target
]], { site = p.site }, { parents = true })
    service.enable("app")
    if changed then
      tx.notify("app") -- restarted behind the last line, where the guest runs; if it does not stay up, all is taken back
    end
    progress(0.8, "content")
    file.mkdir("/srv/www/" .. p.site, { parents = true })
    file.symlink("/srv/www/" .. p.site, "/srv/current")
    log.info("configured " .. p.site)
    return { site = p.site, conf = file.sha256("/etc/app/app.conf") }
  end,
}
