---@meta
-- Generated from the rows of the rooms and wire/pb/ops.proto by go generate ./builtins/all. Not to be edited.
-- luacheck: ignore

---What a command gave.
---@class quantix.RunResult
---@field code integer
---@field stdout string
---@field stderr string
---@field truncated boolean

---file.stat, and an element of file.list
---@class quantix.FileInfo
---@field name string
---@field path string
---@field type string file, directory, symlink, fifo, socket, device
---@field size integer
---@field mode string Octal permission bits, such as "0644".
---@field owner string
---@field group string
---@field mtime number Seconds since 1970.
---@field target string Where a symlink points.

---One mounted file system, in bytes.
---@class quantix.Disk
---@field mount string
---@field device string
---@field type string
---@field total integer
---@field used integer
---@field available integer

---host.info
---@class quantix.HostInfo
---@field hostname string
---@field os string Of os-release: NAME, VERSION_ID, ID.
---@field os_version string
---@field os_id string
---@field kernel string
---@field architecture string
---@field cpus integer
---@field memory_bytes integer
---@field machine_id string
---@field product_uuid string The UUID that SMBIOS tells, which the host gave this guest.
---@field agent_version string

---One network interface.
---@class quantix.NetInterface
---@field name string
---@field mac string
---@field mtu integer
---@field up boolean
---@field loopback boolean
---@field addresses string[] With prefix length, such as 192.0.2.7/24.

---host.memory, in bytes.
---@class quantix.Memory
---@field total integer
---@field available integer
---@field swap_total integer
---@field swap_free integer

---One thing that the script changed so far.
---@class quantix.ScriptChange
---@field op string
---@field target string A path, or a command.
---@field action string created, modified, deleted, moved, ran
---@field reversible boolean Whether a rollback takes it back.

exec = {}

---@class exec.run.options
---@field cwd? string
---@field env? table<string, string> Added to a clean environment.
---@field stdin? string
---@field timeout? number Seconds; 0: what is left of the time of the script.
---@field user? string
---@field group? string
---@field check? boolean Raise on a non-zero exit; true unless said otherwise.
---@field max_output? integer Bytes kept of each stream; 0: 1 MiB.
---@field readonly? boolean Changes nothing.
---@field undo? string[] Takes it back; must be idempotent and bear that the command never ran.
---@field touches? string[] Changes nothing but these paths.
---@field irreversible? boolean Cannot be taken back, and a rollback says so.
---@field unconfined? boolean With touches: do not confine the command to them.
---@field plan? string With a dry run: what the command would do.

---Run a program that says what it does to the guest. One of readonly, undo, touches, irreversible says what the command does to the guest.
---May change the guest.
---A call that fails is not taken back by itself.
---@param argv string[]
---@param options? exec.run.options
---@return quantix.RunResult result
function exec.run(argv, options) end

---@class exec.sh.options
---@field cwd? string
---@field env? table<string, string>
---@field stdin? string
---@field timeout? number
---@field user? string
---@field group? string
---@field check? boolean
---@field max_output? integer
---@field readonly? boolean
---@field undo? string[]
---@field touches? string[]
---@field irreversible? boolean
---@field unconfined? boolean
---@field plan? string

---Run a line of shell that says what it does to the guest. As exec.run, with a line for the shell.
---May change the guest.
---A call that fails is not taken back by itself.
---@param command string
---@param options? exec.sh.options
---@return quantix.RunResult result
function exec.sh(command, options) end

file = {}

---@class file.append.options
---@field mode? string
---@field owner? string
---@field group? string
---@field parents? boolean Create missing parent directories.
---@field backup? boolean Keep what was there as path.bak.
---@field inplace? boolean Write into the file that is there instead of replacing it: for files with several links or mounted over.

---Add to the end of a file. Mode is octal text such as "0644".
---Changes the guest.
---@param path string
---@param content string
---@param options? file.append.options
---@return boolean changed
function file.append(path, content, options) end

---The content of a file that came with the script.
---@param name string
---@return string content
function file.attachment(name) end

---Set the mode of a file or directory.
---Changes the guest.
---@param path string
---@param mode string
---@return boolean changed
function file.chmod(path, mode) end

---Set the owner and group of a file or directory. A name or a number; empty leaves as it is.
---Changes the guest.
---@param path string
---@param owner? string
---@param group? string
---@return boolean changed
function file.chown(path, owner, group) end

---Make a file have the content of another.
---Changes the guest.
---@param from string
---@param to string
---@return boolean changed
function file.copy(from, to) end

---Whether something is there, be it a link to nothing.
---@param path string
---@return boolean exists
function file.exists(path) end

---The paths that match a pattern of *, ? and [a-z], sorted.
---@param pattern string
---@return string[] paths
function file.glob(pattern) end

---@class file.line.options
---@field line? string The line as it shall stand there, without its end.
---@field match? string Which line is replaced, the last that matches; with state "absent": which lines go, all that match.
---@field state? string "present", which is meant if nothing is said, or "absent".
---@field after? string Where a new line comes: behind the last line that matches; else, or if none does, at the end.
---@field before? string Where a new line comes: before the first line that matches.
---@field mode? string Of a file that is made; one that is there keeps what it has unless it is said.
---@field owner? string
---@field group? string
---@field parents? boolean Create missing parent directories.
---@field backup? boolean Keep what was there as path.bak.
---@field inplace? boolean Write into the file that is there instead of replacing it.

---Make a line stand in a text file, or not stand there. One line of a text file. Patterns are regular expressions in the syntax of RE2.
---Changes the guest.
---@param path string
---@param options? file.line.options
---@return boolean changed
function file.line(path, options) end

---Describe what is in a directory, sorted by name.
---@param path string
---@return quantix.FileInfo[] entries
function file.list(path) end

---@class file.mkdir.options
---@field mode? string
---@field owner? string
---@field group? string
---@field parents? boolean

---Make a directory.
---Changes the guest.
---@param path string
---@param options? file.mkdir.options
---@return boolean changed
function file.mkdir(path, options) end

---Give a file or directory another path.
---Changes the guest.
---@param from string
---@param to string
---@return boolean changed
function file.move(from, to) end

---The content of a file.
---@param path string
---@return string content
function file.read(path) end

---@class file.remove.options
---@field recursive? boolean Remove a directory with what is in it.

---Remove what is there, if anything is.
---Changes the guest.
---@param path string
---@param options? file.remove.options
---@return boolean changed
function file.remove(path, options) end

---@class file.replace.options
---@field literal? boolean Pattern and replacement are plain text.
---@field again? boolean It may be that a second run changes the file again.
---@field backup? boolean Keep what was there as path.bak.
---@field inplace? boolean Write into the file that is there instead of replacing it.

---Replace what matches a pattern in a text file. All places of a text file that match a regular expression in the syntax of RE2; ^ and $ are the ends of a line.
---Changes the guest.
---@param path string
---@param pattern string
---@param replacement string What comes there: $1 or ${name} stand for what a group matched, $$ for a dollar sign.
---@param options? file.replace.options
---@return boolean changed
function file.replace(path, pattern, replacement, options) end

---The SHA-256 of the content of a file, in hex.
---@param path string
---@return string sha256
function file.sha256(path) end

---Describe what is there, a link itself.
---@param path string
---@return quantix.FileInfo result
function file.stat(path) end

---Make a symbolic link.
---Changes the guest.
---@param target string
---@param path string
---@return boolean changed
function file.symlink(target, path) end

---@class file.template.options
---@field mode? string
---@field owner? string
---@field group? string
---@field parents? boolean
---@field backup? boolean

---Write a file from a text with {{name}} in it. {{name}} in text stands for a value of vars, which must be one line; {{name|shell}}, {{name|json}}, {{name|yaml}} and {{name|xml}} write any value so that it is one word, string or text there; {{name|raw}} as it is.
---Changes the guest.
---@param path string
---@param text string
---@param vars? table<string, string>
---@param options? file.template.options
---@return boolean changed
function file.template(path, text, vars, options) end

---@class file.write.options
---@field mode? string
---@field owner? string
---@field group? string
---@field parents? boolean Create missing parent directories.
---@field backup? boolean Keep what was there as path.bak.
---@field inplace? boolean Write into the file that is there instead of replacing it: for files with several links or mounted over.

---Make a file have a content. Mode is octal text such as "0644".
---Changes the guest.
---@param path string
---@param content string
---@param options? file.write.options
---@return boolean changed
function file.write(path, content, options) end

host = {}

---The mounted file systems in bytes.
---@return quantix.Disk[] disks
function host.disks() end

---The name of the guest; with a new one, whether that changed it.
---May change the guest.
---@param new? string What the guest shall be called; without it, it is only told.
---@return any value
function host.hostname(new) end

---What guest this is.
---@return quantix.HostInfo result
function host.info() end

---The network interfaces.
---@return quantix.NetInterface[] interfaces
function host.interfaces() end

---The memory in bytes.
---@return quantix.Memory result
function host.memory() end

---A setting of the kernel; with a value, whether that changed it.
---May change the guest.
---@param name string A setting of the kernel, such as net.ipv4.ip_forward.
---@param value? string What it shall be until the next boot; without it, it is only told. A file in /etc/sysctl.d keeps it.
---@return any value
function host.sysctl(name, value) end

---The time zone; with a new one, whether that changed it.
---May change the guest.
---@param new? string A name of the time zone database, such as Europe/Vienna; without it, the one that is set is told.
---@return any value
function host.timezone(new) end

---The seconds since the guest started.
---@return number seconds
function host.uptime() end

tx = {}

---What the script changed so far.
---@return quantix.ScriptChange[] changes
function tx.changes() end

---@class tx.on_rollback.options
---@field cwd? string
---@field env? table<string, string> Added to a clean environment.
---@field user? string
---@field group? string
---@field timeout? number Seconds; 0: as long as a command of the host may take.

---Have a rollback run a command when it comes to this point. A command that a rollback runs in its turn. It must be idempotent.
---Changes the guest.
---@param argv string[] The program and its arguments.
---@param options? tx.on_rollback.options
function tx.on_rollback(argv, options) end

---What the script was given.
---@type table<string, any>
params = {}

---The secrets that were given; they are never logged.
---@type table<string, string>
secrets = {}

---@class quantix.Param
---@field type "string"|"integer"|"number"|"boolean"|"list"|"map"|"enum"|"path"|"ip"|"cidr"|"hostname"
---@field required? boolean
---@field default? any
---@field enum? any[]
---@field pattern? string
---@field min? number Of a number its value, of a text its bytes, of a list its length.
---@field max? number
---@field secret? boolean
---@field description? string

---@class quantix.Declaration
---@field name string
---@field version? string
---@field description? string
---@field params? table<string, quantix.Param>
---@field needs? string[]
---@field timeout? number|string
---@field confirm? number|string
---@field readonly? boolean
---@field run fun(params: table<string, any>): any

---Declares a script, as its last statement.
---@param declaration quantix.Declaration
---@return quantix.Declaration
function script(declaration) end

---@class quantix.Log
---@overload fun(...: any)
log = {}
---@param ... any
function log.debug(...) end
---@param ... any
function log.info(...) end
---@param ... any
function log.warn(...) end
---@param ... any
function log.error(...) end

---How far the script is, from 0 to 1, or nil; and what it does.
---@param fraction number|nil
---@param step? string
function progress(fraction, step) end

---1 to 4096 random bytes, fit for keys.
---@param bytes integer
---@return string
function random(bytes) end

json = {null = {}}
---@param value any
---@return string
function json.encode(value) end
---@param text string
---@return any
function json.decode(text) end
---Marks a list, which an empty table does not show by itself.
---@param list? table
---@return table
function json.array(list) end

yaml = {}
---@param value any
---@return string
function yaml.encode(value) end
---@param text string
---@return any
function yaml.decode(text) end

base64 = {}
---@param bytes string
---@return string
function base64.encode(bytes) end
---@param text string
---@return string
function base64.decode(text) end
