local PATH = "/etc/systemd/journald.conf.d/50-limits.conf"

return {
  are_set = function()
    local run = test.run({max_use = "200M"}, {foretold = true})
    assert(run.result.changed and not run.result.activated and #run.commands == 0) -- in an image nothing is restarted
    assert(file.read(PATH) == "[Journal]\nSystemMaxUse=200M\nSystemKeepFree=1G\nMaxRetentionSec=1month\n")
  end,

  are_not_overridden = function()
    local function overridden(path, text, says)
      file.write(path, text, {parents = true})
      test.run(nil, {fails = "overridden by " .. path .. says})
      file.remove(path)
    end
    overridden("/etc/systemd/journald.conf.d/99-mine.conf", "# x\n[Journal]\n SystemMaxUse = 4G \n", ":3: SystemMaxUse=4G")
    overridden("/usr/lib/systemd/journald.conf.d/60-vendor.conf", "[Journal]\nMaxRetentionSec=\n", ":2: MaxRetentionSec=")
    test.run({activate = false})
    overridden("/run/systemd/journald.conf.d/99-x.conf", "[Journal]\nSystemKeepFree=1M\n", ":2: SystemKeepFree=1M")
    for path, text in pairs({
      ["/etc/systemd/journald.conf.d/10-mine.conf"] = "[Journal]\nSystemMaxUse=4G\n",
      ["/usr/lib/systemd/journald.conf.d/50-limits.conf"] = "[Journal]\nSystemMaxUse=4G\n",
      ["/etc/systemd/journald.conf.d/60-a.conf"] = "[Journal]\nSystemMaxUse=500M\n#SystemMaxUse=4G\n[Other]\nSystemMaxUse=4G\n",
      ["/usr/lib/systemd/journald.conf.d/70-gone.conf"] = "[Journal]\nSystemMaxUse=4G\n",
    }) do
      file.write(path, text, {parents = true})
    end
    file.symlink("/dev/null", "/etc/systemd/journald.conf.d/70-gone.conf")
    assert(not test.run().result.changed)
  end,

  have_units_that_there_are = function()
    for _, age in ipairs({"0", "30", "2week", "1M", "90days"}) do
      test.run({max_age = age, activate = false})
    end
    test.run({max_age = "1fortnight"}, {fails = "fortnight is no unit of time"})
  end,

  survive_a_crash = function()
    test.crash()
  end,
}
