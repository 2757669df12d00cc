-- Changes a good deal, and then finds that it cannot go on.
file.write("/etc/app/app.conf", "half = done\n")
file.remove("/srv", { recursive = true })
account.create("half", { system = true })
service.disable("app")
file.chmod("/etc/hosts", "0600")
file.mkdir("/opt/new/tree", { parents = true })
file.write("/etc/hosts", "10.0.0.1 nowhere\n")
error("the database does not answer")
