-- Generated from the rows of the rooms and wire/pb by go generate ./builtins/all. Not to be edited.
-- luacheck --config quantix.luacheckrc FILE.lua
max_line_length = 128
std = "quantix"
stds.quantix = {
  read_globals = {
    params = {other_fields = true},
    secrets = {other_fields = true},
    "script",
    "require",
    log = {fields = {"debug", "error", "info", "warn"}},
    "progress",
    json = {fields = {"array", "decode", "encode", "null"}},
    yaml = {fields = {"decode", "encode"}},
    base64 = {fields = {"decode", "encode"}},
    "random",
    _G = {other_fields = true},
    "_VERSION",
    "assert",
    "collectgarbage",
    "error",
    "getmetatable",
    "ipairs",
    "next",
    "pairs",
    "pcall",
    "print",
    "rawequal",
    "rawget",
    "rawset",
    "select",
    "setmetatable",
    "tonumber",
    "tostring",
    "type",
    "unpack",
    "xpcall",
    math = {fields = {"abs", "acos", "asin", "atan", "atan2", "ceil", "cos", "cosh", "deg", "exp", "floor", "fmod", "frexp", "huge", "ldexp", "log", "log10", "max", "min", "mod", "modf", "pi", "pow", "rad", "random", "randomseed", "sin", "sinh", "sqrt", "tan", "tanh"}},
    string = {fields = {"byte", "char", "find", "format", "gfind", "gmatch", "gsub", "len", "lower", "match", "rep", "reverse", "sub", "upper"}},
    table = {fields = {"concat", "getn", "insert", "maxn", "remove", "sort"}},
    account = {fields = {"create", "exists", "get", "groups", "list", "modify", "password", "remove", "ssh_keys"}},
    exec = {fields = {"run", "sh"}},
    file = {fields = {"append", "attachment", "block", "chmod", "chown", "copy", "exists", "glob", "line", "list", "mkdir", "move", "read", "remove", "replace", "sha256", "stat", "symlink", "template", "write"}},
    host = {fields = {"disks", "dns", "hostname", "info", "interfaces", "keymap", "locale", "memory", "mount", "routes", "sysctl", "timezone", "unmount", "uptime"}},
    netplan = {fields = {"apply", "get", "remove", "set", "status", "validate"}},
    package = {fields = {"install", "installed", "remove", "update", "version"}},
    power = {fields = {"poweroff", "reboot"}},
    process = {fields = {"kill", "list"}},
    registry = {fields = {"get", "remove", "set"}},
    service = {fields = {"daemon_reload", "disable", "enable", "list", "mask", "reload", "restart", "start", "status", "stop", "unmask"}},
    tx = {fields = {"changes", "notify", "on_commit", "on_rollback"}},
  },
}
stds.quantix_test = {
  read_globals = {
    test = {fields = {"command", "crash", "crash_at", "run"}},
  },
}
files = {["/**/*_test.lua"] = {std = "+quantix_test"}}
