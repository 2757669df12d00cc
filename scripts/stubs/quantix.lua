---@meta
-- Generated from the rows of the rooms and wire/pb by go generate ./builtins/all. Not to be edited.
-- luacheck: ignore

---account.get: a user.
---@class quantix.Account
---@field name string The name that was asked for.
---@field uid integer The number.
---@field gid integer Of the primary group.
---@field group string The name of the primary group; its number where there is no such group.
---@field groups string[] The names of the supplementary groups in /etc/group.
---@field home string The home directory, which need not be there.
---@field shell string The login shell; empty: /bin/sh.
---@field comment string The GECOS field.
---@field local boolean Of /etc/passwd; false: of a directory service, which this agent does not change.

---What an output shall be. What is not said stays as it is.
---@class quantix.DisplaySetting
---@field name string As it is listed. Required.
---@field enabled? boolean False turns it off.
---@field width integer Pixels in a line, from 64 to 16384.
---@field height integer Lines, from 64 to 16384: both or neither.
---@field refresh number Pictures in a second; with a size and without this: the most that a listed mode of this size has, else 60.
---@field scale number From 0.5 to 8; the nearest that the desktop has is taken.
---@field x? integer Where its upper left corner is. Where none says it, the outputs that are named are put side by side.
---@field y? integer Where that corner is, from the top: both or neither.
---@field primary boolean Make it the primary one.
---@field dpi integer Dots per inch, of a desktop without scales; 0: as they are.

---One mode of an output.
---@class quantix.DisplayMode
---@field width integer Pixels in a line.
---@field height integer Lines.
---@field refresh number Pictures in a second.
---@field current boolean The output shows it.
---@field preferred boolean The monitor is made for it, or the host of the guest wishes it.
---@field scales number[] The scales that it can have; none: any.

---One output, such as a monitor.
---@class quantix.DisplayOutput
---@field name string What display_id and other requests call it.
---@field enabled boolean Something is shown on it.
---@field primary boolean Where the desktop has its panels; some have no primary output.
---@field width integer Pixels of its mode in a line, before it is rotated; 0 where nothing is shown.
---@field height integer Lines of its mode.
---@field refresh number Pictures in a second; 0: not known.
---@field scale number By how much things are drawn larger; 1 where the desktop has no scale for each output.
---@field x integer Where its upper left corner is, from the left of the layout.
---@field y integer Where that corner is, from the top.
---@field transform string normal, 90, 180 or 270 (degrees against the clock), and flipped before each of these where it is mirrored.
---@field make string Who made the monitor, where that is known.
---@field model string What its maker calls it.
---@field serial string Its serial number.
---@field width_mm integer Width of the picture in millimetres, where that is known.
---@field height_mm integer Height of the picture in millimetres.
---@field modes quantix.DisplayMode[] What it can show.
---@field any_size boolean It takes sizes that are not among its modes.

---display.list
---@class quantix.DisplayList
---@field outputs quantix.DisplayOutput[] Those that something is connected to, from left to right.
---@field system string By what they are set: x11 (RandR), wlroots, kde, gnome or windows.
---@field compositor string The program that draws the desktop, where that is known.

---What a command gave.
---@class quantix.RunResult
---@field code integer The exit status; 128 and the number of a signal that ended it.
---@field stdout string What it wrote.
---@field stderr string What it wrote there.
---@field truncated boolean More was written than is kept.

---file.stat, and an element of file.list
---@class quantix.FileInfo
---@field name string The last element of its path.
---@field path string Where it lies, from the root of the guest.
---@field type string file, directory, symlink, fifo, socket, device
---@field size integer Bytes.
---@field mode string Octal permission bits, such as "0644".
---@field owner string The name of the user, or its number.
---@field group string The name of the group, or its number.
---@field mtime number Seconds since 1970.
---@field target string Where a symlink points.

---One mounted file system, in bytes.
---@class quantix.Disk
---@field mount string Where it is mounted.
---@field device string What is mounted.
---@field type string Of the file system, such as ext4.
---@field total integer Bytes.
---@field used integer Bytes.
---@field available integer Bytes.
---@field inodes_total integer How many files it can hold; 0 where that is not a fixed number.
---@field inodes_used integer How many files it holds.

---What is asked through one interface. Domains that only route are with a tilde, such as ~example.com.
---@class quantix.NetDnsLink
---@field interface string Its name; the index of one that is gone.
---@field servers string[] As in NetDns.
---@field search string[] As in NetDns.

---host.dns: who is asked for names.
---@class quantix.NetDns
---@field servers string[] The name servers that are asked, without those that only pass on: a port behind #, if it is not 53.
---@field search string[] The domains that are tried behind a short name.
---@field manager string systemd-resolved, where it answers what /etc/resolv.conf leads to; else resolv.conf. On Windows windows.
---@field links quantix.NetDnsLink[] Of systemd-resolved: what it asks for the sake of one interface.
---@field options string[] The options of /etc/resolv.conf, such as timeout:1.

---host.info
---@class quantix.HostInfo
---@field hostname string Its name.
---@field os string Of os-release: NAME, VERSION_ID, ID. On Windows os and os_id are windows.
---@field os_version string VERSION_ID.
---@field os_id string ID, such as debian.
---@field kernel string Its release.
---@field architecture string As the host spells it, such as x86_64.
---@field cpus integer How many there are.
---@field memory_bytes integer Of the guest.
---@field machine_id string Of /etc/machine-id.
---@field product_uuid string The UUID that SMBIOS tells, which the host gave this guest.
---@field agent_version string Of the agent that runs the script.
---@field product string On Windows its full name, such as Microsoft Windows Server 2022 Standard.

---One network interface.
---@class quantix.NetInterface
---@field name string Such as eth0.
---@field mac string Its hardware address.
---@field mtu integer Bytes of its largest packet.
---@field up boolean It is switched on.
---@field loopback boolean It leads to the guest itself.
---@field addresses string[] With prefix length, such as 192.0.2.7/24.
---@field kind string physical for hardware, loopback, or the driver's name: bridge, bond, vlan, veth, tun, wireguard, …
---@field index integer The kernel's number of it.
---@field master string The bridge or bond that it is a port of; empty: of none.
---@field enabled boolean Switched on, be there a carrier or not.
---@field tentative string[] Those of addresses that cannot be used yet, or at all: they are checked for duplicates, or one was found.

---host.memory, in bytes.
---@class quantix.Memory
---@field total integer Bytes.
---@field available integer Bytes.
---@field swap_total integer Bytes.
---@field swap_free integer Bytes.

---One route. Of one with several next hops there is an entry for each.
---@class quantix.NetRoute
---@field destination string With prefix length; the default route is 0.0.0.0/0 or ::/0.
---@field gateway string Empty: the destination is on the link.
---@field interface string What packets leave by; empty: they do not leave.
---@field source string The address that packets get which have none; empty: the kernel chooses.
---@field metric integer The lowest counts.
---@field table integer 254 is the main one.
---@field protocol string Who made it: kernel, boot, static, dhcp, ra, …, or a number.
---@field scope string global, site, link, host or nowhere.
---@field type string unicast, or what is done with packets instead: blackhole, unreachable, prohibit, throw.

---What netplan.apply tries when the network is as it was asked for.
---@class quantix.NetplanVerify
---@field gateway boolean A default gateway must answer, also where none did before.
---@field tcp string A connection to this host:port must succeed.
---@field dns string This name must have an address.

---One step of netplan.apply.
---@class quantix.NetplanStep
---@field step string before, renderer, link, gateway, tcp, dns
---@field object string An interface, an address, a name.
---@field seen string What was found there.
---@field at number Seconds since the call began.

---netplan.apply
---@class quantix.NetplanApplied
---@field changed boolean Whether anything was changed: false where the network is as the files say.
---@field links string[] The interfaces whose configuration was changed.
---@field steps quantix.NetplanStep[] What was seen, in order.

---Who manages a network interface.
---@class quantix.NetplanLink
---@field name string What it is called now.
---@field mac string Its hardware address; empty where it has none.
---@field manager string networkd, NetworkManager, ifupdown, or none.
---@field state string What its manager says of it, such as configured.
---@field addresses string[] With prefix length.

---netplan.status
---@class quantix.NetplanStatus
---@field pending boolean What the files say is not what was generated of them last: netplan.apply would change something.
---@field error string Why the files cannot be used; empty: they can.
---@field files string[] The files that netplan reads, in its order.
---@field links quantix.NetplanLink[] The network interfaces.

---What another file says of the same interface: netplan.set refuses that, unless override is given. Or a default route of the same metric in the file itself.
---@class quantix.NetplanConflict
---@field key string The key, such as ethernets.ens3.dhcp4.
---@field file string The other file.
---@field line integer The line in it.
---@field meaning string What comes of it: which value holds, or that both do.
---@field hint string What ends it for good, where that is known: how cloud-init is kept from writing its file again.

---netplan.validate: what was found out, where nothing is wrong.
---@class quantix.NetplanValidated
---@field yaml string The text of the file.
---@field conflicts quantix.NetplanConflict[] What other files say of the same interfaces, and default routes of the same metric.

---One process, or one of its threads.
---@class quantix.Process
---@field pid integer Of a thread, the number of the thread.
---@field ppid integer The pid of the parent.
---@field name string In it, and in command_line, what is not printable is escaped.
---@field command_line string Quoted as for a shell, and cut where it is long; empty for a kernel thread, a zombie or a thread.
---@field user string The effective user, by number where there is no name.
---@field cpu_percent number Present use in percent of one processor, over 0.2 s or the time since the last list.
---@field memory_bytes integer What is resident.
---@field state string running, sleeping, stopped, zombie, idle, dead or unknown
---@field started number Seconds since 1970.
---@field threads integer How many it has.
---@field working_directory string Empty where it cannot be read.
---@field start_ticks integer Clock ticks (1/100 s) from the boot of the guest to the start.
---@field thread_of integer Of a thread: the pid of its process; 0: this is a process.

---service.status, and one of service.list, which leaves out what it does not get of all at once: pid, memory_bytes, result.
---@class quantix.Service
---@field name string As systemd has it, such as nginx.service; with OpenRC nginx.
---@field description string What its file says it is.
---@field load string loaded, masked, not-found, bad-setting or error
---@field active string active, reloading, inactive, failed, activating or deactivating
---@field sub string The state in the words of the kind of unit, such as running, exited or dead.
---@field enabled string enabled, disabled, static, masked, indirect, generated and so on; empty: it is not known. On Windows enabled, delayed, manual, disabled, boot or system.
---@field running boolean Whether active is active or reloading.
---@field pid integer Of the main process; 0: none.
---@field memory_bytes integer What it uses now; 0: not known.
---@field result string How it ended the last time, such as success, exit-code or timeout.

---One thing that the script changed so far.
---@class quantix.ScriptChange
---@field op string The function, such as file.write.
---@field target string A path, or a command.
---@field action string created, modified, deleted, moved, ran
---@field reversible boolean Whether a rollback takes it back.

---Why a script failed.
---@class quantix.TrialError
---@field kind string params, runtime, builtin, policy, timeout and so on
---@field message string What went wrong, for people.
---@field op string The function that failed, if one did.
---@field code string Of the error of a function, such as not_found.
---@field line integer Of the script.

---One thing that was changed.
---@class quantix.TrialChange
---@field op string The function, such as file.write.
---@field target string A path, or a command.
---@field action string created, modified, deleted, ran and so on

---What became of a run.
---@class quantix.Trial
---@field status string committed, rolled_back, refused, dry_run, partial or rollback_failed
---@field result any What the script returned.
---@field error quantix.TrialError Why it failed; not there where it did not.
---@field changes quantix.TrialChange[] In the order in which they were made.
---@field commands string[] The commands that ran, in their order, as a shell would read them. Those of a rollback begin with "undo: ".
---@field log string[] Its lines.

---@class (exact) quantix.room.account
account = {}

---@class (exact) account.create.options
---@field uid? integer The number; the next free one unless said otherwise.
---@field gid? integer The number of the primary group. Where no group has it, a group with the name of the user gets it.
---@field group? string The name of the primary group, which must be there; instead of gid.
---@field groups? string[] Supplementary groups, which must be there. The user stays in others as well.
---@field home? string The home directory. Unless said otherwise: the name, below HOME of /etc/default/useradd.
---@field shell? string The login shell; SHELL of /etc/default/useradd unless said otherwise.
---@field comment? string The GECOS field, which holds the real name.
---@field system? boolean A number of those for the system, no expiry of the password, and no home directory unless home is given.
---@field create_home? boolean Make the home directory where there is none, with what is in /etc/skel; false: do not.
---@field non_unique? boolean Take a uid also where another user has it.
---@field force? boolean Change the uid or gid of a user also while processes of the user run.

---Make a user, or make one that is there what is said.
---Changes the guest.
---@param name string The name of the user.
---@param options? account.create.options
---@return boolean changed
function account.create(name, options) end

---Whether there is a user, also of a directory service.
---@param name string The name of a user.
---@return boolean exists
function account.exists(name) end

---A user, also of a directory service.
---@param name string The name of a user.
---@return quantix.Account result
function account.get(name) end

---@class (exact) account.groups.options
---@field exclusive? boolean Take the user out of all others; the primary group is none of these.

---The supplementary groups of a user; with groups, or exclusive, whether setting them changed anything.
---May change the guest.
---@param name string The name of the user.
---@param groups? string[] Groups that the user is to be in; they must be there.
---@param options? account.groups.options
---@return any value
function account.groups(name, groups, options) end

---@class (exact) account.list.options
---@field system? boolean Only users below UID_MIN of /etc/login.defs; false: only the others. Without it: both.

---The users of /etc/passwd.
---@param options? account.list.options
---@return quantix.Account[] accounts
function account.list(options) end

---@class (exact) account.modify.options
---@field uid? integer Another number. What belongs to the user in the home directory goes with it, at most 1,000 files.
---@field gid? integer The number of another primary group, which must be there.
---@field group? string Its name, instead of gid.
---@field groups? string[] Groups that the user is to be in as well.
---@field home? string Another home directory. None is made, and nothing is moved unless move_home is set.
---@field shell? string Another login shell.
---@field comment? string Another GECOS field.
---@field non_unique? boolean Take a uid also where another user has it.
---@field force? boolean Change the uid or gid also while processes of the user run.
---@field move_home? boolean Move what is in the former home directory to home, with missing directories above that. It stays on its file system: to another one nothing is moved, and the call fails. It fails as well where something is at home already, unless nothing is at the former place. Labels of SELinux stay as they are.

---Change a user. What is not given stays as it is.
---Changes the guest.
---@param name string The name of the user, which must be there.
---@param options? account.modify.options
---@return boolean changed
function account.modify(name, options) end

---@class (exact) account.password.options
---@field crypted? boolean The password is a hash as crypt(3) makes it, or ! or * for none that fits.
---@field expire? boolean The user must choose another password at the next login; false: need not.

---Set the password of a user.
---Changes the guest.
---@param name string The name of the user.
---@param password string The password. It appears in no list of changes, no log and no audit. It is hashed by yescrypt, SHA-512 or SHA-256, as PAM or /etc/login.defs say; by SHA-512 where these name another method.
---@param options? account.password.options
---@return boolean changed
function account.password(name, password, options) end

---@class (exact) account.remove.options
---@field home? boolean Remove the home directory and the mail spool as well, if they belong to the user.
---@field force? boolean Also while processes of the user run.

---Remove a user.
---Changes the guest.
---@param name string The name of the user. Where there is none nothing changes.
---@param options? account.remove.options
---@return boolean changed
function account.remove(name, options) end

---@class (exact) account.ssh_keys.options
---@field exclusive? boolean Remove all other keys.

---The keys by which a user may log in; with keys, or exclusive, whether setting them changed anything.
---May change the guest.
---@param name string The name of the user.
---@param keys? string[] Lines as in authorized_keys: [options] type base64 [comment]. A key that is there keeps its line, unless the line that is given has other options.
---@param options? account.ssh_keys.options
---@return any value
function account.ssh_keys(name, keys, options) end

---@class (exact) quantix.room.clipboard
clipboard = {}

---@class (exact) clipboard.get.options
---@field primary? boolean What is selected, and pasted by the middle mouse button, instead. Not on Windows.

---The content of the clipboard of the desktop in front.
---@param type? string text, html, png or files: a list of URIs, a line each. Empty: text. There is no other form in its place.
---@param options? clipboard.get.options
---@return string content
function clipboard.get(type, options) end

---@class (exact) clipboard.set.options
---@field text? string With type html: what is pasted as plain text. Empty: what is left of it without its tags.
---@field primary? boolean What is selected, and pasted by the middle mouse button, instead. Not on Windows.

---Set the clipboard of the desktop in front, which nothing takes back.
---Changes the guest.
---@param content string Any bytes.
---@param type? string text, html, png or files, as of clipboard.get; a BMP is made a PNG. Empty: text.
---@param options? clipboard.set.options
---@return boolean changed
function clipboard.set(content, type, options) end

---@class (exact) quantix.room.display
display = {}

---Set several outputs at once.
---Changes the guest.
---@param outputs quantix.DisplaySetting[] In the order in which they are put side by side where none of them has a position.
---@return boolean changed
function display.layout(outputs) end

---The outputs of the desktop in front.
---@return quantix.DisplayList result
function display.list() end

---@class (exact) display.set.options
---@field refresh? number Pictures in a second; without it, the most that a listed mode of this size has, else 60.
---@field scale? number From 0.5 to 8; the nearest that the desktop has is taken.

---Set the size of an output.
---Changes the guest.
---@param width integer Pixels in a line, from 64 to 16384.
---@param height integer Lines, from 64 to 16384.
---@param output? string Which one, as it is listed; without it, the primary one.
---@param options? display.set.options
---@return boolean changed
function display.set(width, height, output, options) end

---@class (exact) quantix.room.exec
exec = {}

---@class (exact) exec.run.options
---@field cwd? string Where it is run; / unless it is said.
---@field env? table<string, string> Added to a clean environment.
---@field stdin? string What it reads.
---@field timeout? number Seconds; 0: what is left of the time of the script.
---@field user? string Who runs it, by name or number.
---@field group? string Its group, where that is not the user's.
---@field check? boolean Raise on a non-zero exit; true unless said otherwise.
---@field max_output? integer Bytes kept of each stream; 0: 1 MiB.
---@field readonly? boolean Changes nothing. Where the guest cannot hold it to that, the log of the reply says so; of touches, too.
---@field undo? string[] Takes it back; must be idempotent and bear that the command failed or never ran.
---@field touches? string[] Changes nothing but these paths.
---@field irreversible? boolean Cannot be taken back, and a rollback says so.
---@field unconfined? boolean With touches or readonly: do not hold the command to that.
---@field plan? string With a dry run: what the command would do.
---@field undo_ok? integer[] With undo: its exit codes that mean that there was nothing to undo, such as 6 of userdel for a user that does not exist.
---@field undo_if? string[] With undo: a command that changes nothing and says whether there is anything to undo. On exit code 0 undo runs, on 1 to 125 it does not; any other end fails the rollback, as does that it failed since it may not write.
---@field private? boolean With readonly: it has a view of its own of /run, /tmp and /var, and what it writes there is thrown away. Directories in /run that units and tmpfiles.d name are there even if they are missing in the guest.
---@field memory_limit? integer Bytes of memory that it, and what it starts, may commit together; 0: any. On Windows alone; elsewhere it is refused.
---@field processor_limit? number Seconds of processor time, as above.

---Run a program that says what it does to the guest. One of readonly, undo, touches, irreversible says what the command does to the guest.
---May change the guest.
---A call that fails is not taken back by itself.
---@param argv string[] The program and its arguments.
---@param options? exec.run.options
---@return quantix.RunResult result
function exec.run(argv, options) end

---@class (exact) exec.sh.options
---@field cwd? string Where it is run; / unless it is said.
---@field env? table<string, string> Added to a clean environment.
---@field stdin? string What it reads.
---@field timeout? number Seconds; 0: what is left of the time of the script.
---@field user? string Who runs it, by name or number.
---@field group? string Its group, where that is not the user's.
---@field check? boolean Raise on a non-zero exit; true unless said otherwise.
---@field max_output? integer Bytes kept of each stream; 0: 1 MiB.
---@field readonly? boolean Changes nothing.
---@field undo? string[] Takes it back; must be idempotent and bear that the command never ran.
---@field touches? string[] Changes nothing but these paths.
---@field irreversible? boolean Cannot be taken back, and a rollback says so.
---@field unconfined? boolean With touches or readonly: do not hold the command to that.
---@field plan? string With a dry run: what the command would do.
---@field undo_ok? integer[] As of exec.run.
---@field undo_if? string[] As of exec.run.
---@field private? boolean As of exec.run.
---@field memory_limit? integer As of exec.run.
---@field processor_limit? number As of exec.run.

---Run a line of shell that says what it does to the guest. As exec.run, with a line for the shell.
---May change the guest.
---A call that fails is not taken back by itself.
---@param command string A line for /bin/sh.
---@param options? exec.sh.options
---@return quantix.RunResult result
function exec.sh(command, options) end

---@class (exact) quantix.room.file
file = {}

---@class (exact) file.append.options
---@field mode? string Octal text such as "0644"; what is there keeps its own unless it is said.
---@field owner? string A user, by name or number.
---@field group? string A group, by name or number.
---@field parents? boolean Create missing parent directories.
---@field backup? boolean Keep what was there as path.bak.
---@field inplace? boolean Write into the file that is there instead of replacing it: for files with several links or mounted over. Who has it open already sees what is written, whatever mode it gets.
---@field validate? string[] A program and its arguments that looks at the new file, whose path stands in the place of %s, before that is put in place: it changes nothing, as a command with readonly. If it fails the old file stays. It is not run in a dry run.

---Add to the end of a file. Mode is octal text such as "0644".
---Changes the guest.
---@param path string Where it lies, from the root of the guest.
---@param content string Any bytes.
---@param options? file.append.options
---@return boolean changed
function file.append(path, content, options) end

---The content of a file that came with the script.
---@param name string The name that it was sent by.
---@return string content
function file.attachment(name) end

---@class (exact) file.block.options
---@field marker? string What the two lines of comment say behind BEGIN and END: it tells the block from others in the file.
---@field text? string The lines as they shall stand there; the end of the last one may be left out.
---@field comment? string What begins a comment in the file; "#" if nothing is said. The end of one that begins with <!-- or /* is added.
---@field state? string "present", which is meant if nothing is said, or "absent": the block goes, with its two lines of comment.
---@field mode? string Of a file that is made; one that is there keeps what it has unless it is said.
---@field owner? string A user, by name or number.
---@field group? string A group, by name or number.
---@field parents? boolean Create missing parent directories.
---@field backup? boolean Keep what was there as path.bak.
---@field inplace? boolean Write into the file that is there instead of replacing it.
---@field validate? string[] A program and its arguments that looks at the new file, whose path stands in the place of %s, before that is put in place: it changes nothing, as a command with readonly. If it fails the old file stays. It is not run in a dry run.

---Make some lines stand in a text file between two lines that mark them, or not stand there. Some lines of a text file, between two lines of comment that mark them.
---Changes the guest.
---@param path string Where it lies, from the root of the guest.
---@param options? file.block.options
---@return boolean changed
function file.block(path, options) end

---Set the mode of a file or directory.
---Changes the guest.
---@param path string Where it lies, from the root of the guest.
---@param mode string Octal text such as "0644".
---@return boolean changed
function file.chmod(path, mode) end

---Set the owner and group of a file or directory. A name or a number; empty leaves as it is.
---Changes the guest.
---@param path string Where it lies, from the root of the guest.
---@param owner? string A user, by name or number.
---@param group? string A group, by name or number.
---@return boolean changed
function file.chown(path, owner, group) end

---Make a file have the content of another.
---Changes the guest.
---@param from string What is taken.
---@param to string Where it shall be.
---@return boolean changed
function file.copy(from, to) end

---Whether something is there, be it a link to nothing.
---@param path string Where it lies, from the root of the guest.
---@return boolean exists
function file.exists(path) end

---The paths that match a pattern of *, ? and [a-z], sorted.
---@param pattern string An absolute path in which *, ? and [a-z] stand for names.
---@return string[] paths
function file.glob(pattern) end

---@class (exact) file.line.options
---@field line? string The line as it shall stand there, without its end.
---@field match? string Which line is replaced, the last that matches, unless the line stands there and does not match; with state "absent": which lines go, all that match.
---@field state? string "present", which is meant if nothing is said, or "absent".
---@field after? string Where a new line comes: behind the last line that matches; else, or if none does, at the end.
---@field before? string Where a new line comes: before the first line that matches.
---@field mode? string Of a file that is made; one that is there keeps what it has unless it is said.
---@field owner? string A user, by name or number.
---@field group? string A group, by name or number.
---@field parents? boolean Create missing parent directories.
---@field backup? boolean Keep what was there as path.bak.
---@field inplace? boolean Write into the file that is there instead of replacing it.
---@field validate? string[] A program and its arguments that looks at the new file, whose path stands in the place of %s, before that is put in place: it changes nothing, as a command with readonly. If it fails the old file stays. It is not run in a dry run.

---Make a line stand in a text file, or not stand there. One line of a text file. Patterns are regular expressions in the syntax of RE2.
---Changes the guest.
---@param path string Where it lies, from the root of the guest.
---@param options? file.line.options
---@return boolean changed
function file.line(path, options) end

---Describe what is in a directory, sorted by name.
---@param path string Where it lies, from the root of the guest.
---@return quantix.FileInfo[] entries
function file.list(path) end

---@class (exact) file.mkdir.options
---@field mode? string Octal text; 0755 unless it is said.
---@field owner? string A user, by name or number.
---@field group? string A group, by name or number.
---@field parents? boolean Create missing parent directories.

---Make a directory.
---Changes the guest.
---@param path string Where it lies, from the root of the guest.
---@param options? file.mkdir.options
---@return boolean changed
function file.mkdir(path, options) end

---Give a file or directory another path.
---Changes the guest.
---@param from string What is taken.
---@param to string Where it shall be.
---@return boolean changed
function file.move(from, to) end

---The content of a file.
---@param path string Where it lies, from the root of the guest.
---@return string content
function file.read(path) end

---@class (exact) file.remove.options
---@field recursive? boolean Remove a directory with what is in it.

---Remove what is there, if anything is.
---Changes the guest.
---@param path string Where it lies, from the root of the guest.
---@param options? file.remove.options
---@return boolean changed
function file.remove(path, options) end

---@class (exact) file.replace.options
---@field literal? boolean Pattern and replacement are plain text.
---@field again? boolean It may be that a second run changes the file again.
---@field backup? boolean Keep what was there as path.bak.
---@field inplace? boolean Write into the file that is there instead of replacing it.
---@field validate? string[] A program and its arguments that looks at the new file, whose path stands in the place of %s, before that is put in place: it changes nothing, as a command with readonly. If it fails the old file stays. It is not run in a dry run.

---Replace what matches a pattern in a text file. All places of a text file that match a regular expression in the syntax of RE2; ^ and $ are the ends of a line.
---Changes the guest.
---@param path string Where it lies, from the root of the guest.
---@param pattern string A regular expression in the syntax of RE2.
---@param replacement string What comes there: $1 or ${name} stand for what a group matched, $$ for a dollar sign.
---@param options? file.replace.options
---@return boolean changed
function file.replace(path, pattern, replacement, options) end

---The SHA-256 of the content of a file, in hex.
---@param path string Where it lies, from the root of the guest.
---@return string sha256
function file.sha256(path) end

---Describe what is there, a link itself.
---@param path string Where it lies, from the root of the guest.
---@return quantix.FileInfo result
function file.stat(path) end

---Make a symbolic link.
---Changes the guest.
---@param target string Where the link points, taken as it is.
---@param path string Where it lies, from the root of the guest.
---@return boolean changed
function file.symlink(target, path) end

---@class (exact) file.template.options
---@field mode? string Octal text such as "0644"; what is there keeps its own unless it is said.
---@field owner? string A user, by name or number.
---@field group? string A group, by name or number.
---@field parents? boolean Create missing parent directories.
---@field backup? boolean Keep what was there as path.bak.
---@field validate? string[] A program and its arguments that looks at the new file, whose path stands in the place of %s, before that is put in place: it changes nothing, as a command with readonly. If it fails the old file stays. It is not run in a dry run.

---Write a file from a text with {{name}} in it. {{name}} in text stands for a value of vars, which must be one line; {{name|shell}}, {{name|json}}, {{name|yaml}} and {{name|xml}} write any value so that it is one word, string or text there; {{name|raw}} as it is.
---Changes the guest.
---@param path string Where it lies, from the root of the guest.
---@param text string The template.
---@param vars? table<string, string> What its names stand for.
---@param options? file.template.options
---@return boolean changed
function file.template(path, text, vars, options) end

---@class (exact) file.write.options
---@field mode? string Octal text such as "0644"; what is there keeps its own unless it is said.
---@field owner? string A user, by name or number.
---@field group? string A group, by name or number.
---@field parents? boolean Create missing parent directories.
---@field backup? boolean Keep what was there as path.bak.
---@field inplace? boolean Write into the file that is there instead of replacing it: for files with several links or mounted over. Who has it open already sees what is written, whatever mode it gets.
---@field validate? string[] A program and its arguments that looks at the new file, whose path stands in the place of %s, before that is put in place: it changes nothing, as a command with readonly. If it fails the old file stays. It is not run in a dry run.

---Make a file have a content. Mode is octal text such as "0644".
---Changes the guest.
---@param path string Where it lies, from the root of the guest.
---@param content string Any bytes.
---@param options? file.write.options
---@return boolean changed
function file.write(path, content, options) end

---@class (exact) quantix.room.host
host = {}

---The mounted file systems in bytes.
---@return quantix.Disk[] disks
function host.disks() end

---The name servers and domains that names are looked up by.
---@return quantix.NetDns result
function host.dns() end

---The name of the guest; with a new one, whether that changed it.
---May change the guest.
---@param new? string What the guest shall be called, on Windows from the next boot on; without it, it is only told.
---@return any value
function host.hostname(new) end

---What guest this is.
---@return quantix.HostInfo result
function host.info() end

---The network interfaces.
---@return quantix.NetInterface[] interfaces
function host.interfaces() end

---The layout of the console's keyboard; with a new one, whether that changed it.
---May change the guest.
---@param new? string A keyboard layout of the console, such as de; without it, the one that is set is told.
---@return any value
function host.keymap(new) end

---The locale; with a new one, whether that changed it.
---May change the guest.
---@param new? string A locale of the guest, such as de_AT.UTF-8; without it, the one that is set is told.
---@return any value
function host.locale(new) end

---The memory in bytes.
---@return quantix.Memory result
function host.memory() end

---@class (exact) host.mount.options
---@field source? string What is mounted: a device, UUID=…, LABEL=…, PARTUUID=…, PARTLABEL=…, server:/path, a directory for options = "bind", or the file system's name, such as tmpfs.
---@field target? string The directory that it is mounted on; it is made if it is missing.
---@field fstype? string The type of the file system, such as ext4, xfs, nfs4, tmpfs; none for a bind mount.
---@field options? string As in fstab, with commas; default: defaults.
---@field dump? integer The fifth field of fstab: whether dump(8) saves it; default: 0.
---@field pass? integer The sixth field of fstab: in which round fsck(8) checks it; default: 0, never.

---Mount a file system at a directory, now and at each boot (fstab); undone together.
---Changes the guest.
---@param options? host.mount.options
---@return boolean changed
function host.mount(options) end

---The routes, but for the kernel's own of local addresses.
---@return quantix.NetRoute[] routes
function host.routes() end

---A setting of the kernel; with a value, whether that changed it.
---May change the guest.
---@param name string A setting of the kernel, such as net.ipv4.ip_forward.
---@param value? string What it shall be until the next boot; without it, it is only told. A file in /etc/sysctl.d keeps it.
---@return any value
function host.sysctl(name, value) end

---The time zone; with a new one, whether that changed it.
---May change the guest.
---@param new? string A name of the time zone database, such as Europe/Vienna, on Windows one of its own, such as W. Europe Standard Time; without it, the one that is set is told.
---@return any value
function host.timezone(new) end

---Unmount what is mounted at a directory, and take it out of fstab; undone together.
---Changes the guest.
---@param target string The directory that something is mounted on.
---@return boolean changed
function host.unmount(target) end

---The seconds since the guest started.
---@return number seconds
function host.uptime() end

---@class (exact) quantix.room.netplan
netplan = {}

---@class (exact) netplan.apply.options
---@field verify? quantix.NetplanVerify What must work afterwards, beside the addresses and the gateway that worked before.
---@field timeout? integer How many seconds the network may take until all of that is so; default: 20, at most 240.

---Have the network be as the files say, see that it works, and go back if it does not.
---Changes the guest.
---@param options? netplan.apply.options
---@return quantix.NetplanApplied result
function netplan.apply(options) end

---The text of a file of netplan, or of all by name.
---@param name? string Which file, such as 50-cloud-init, with or without .yaml; without it, all that netplan reads.
---@return any value
function netplan.get(name) end

---Remove a file of netplan, if the others are good without it.
---Changes the guest.
---@param name string Which file below /etc/netplan, with or without .yaml.
---@return boolean changed
function netplan.remove(name) end

---@class (exact) netplan.set.options
---@field override? boolean Other files may say something else of the same interfaces; default: that is refused.

---Have a file of netplan hold YAML, or a table that becomes it; checked together with all others.
---Changes the guest.
---@param name string Which file below /etc/netplan, such as 60-lan, with or without .yaml.
---@param config any What it shall hold: YAML, or a table that becomes it.
---@param options? netplan.set.options
---@return boolean changed
function netplan.set(name, config, options) end

---Who manages the network interfaces, and whether netplan.apply would change something.
---@return quantix.NetplanStatus result
function netplan.status() end

---@class (exact) netplan.validate.options
---@field name? string The file that it would be; default: 90-quantix.

---Check what a file would hold, together with all others; returns its text and its conflicts with them.
---@param config any What a file would hold: YAML, or a table that becomes it.
---@param options? netplan.validate.options
---@return quantix.NetplanValidated result
function netplan.validate(config, options) end

---@class (exact) quantix.room.package
package = {}

---@class (exact) package.install.options
---@field refresh? boolean Read the lists of what is available anew first; else those that are there are used. Nothing is read where nothing is missing.
---@field timeout? number Seconds for all of it, waiting for locks included; 300 unless said otherwise.
---@field recommended? boolean Install what the packages recommend as well, as far as the package manager knows recommendations.

---Have packages installed, which nothing takes back.
---Changes the guest.
---A call that fails is not taken back by itself.
---@param names string[] Names of packages, each with =version behind it where one version is meant.
---@param options? package.install.options
---@return boolean changed
function package.install(names, options) end

---Whether a package of that name is installed.
---@param name string The name of one package; on dpkg it may end in :architecture, on rpm in .architecture.
---@return boolean installed
function package.installed(name) end

---@class (exact) package.remove.options
---@field purge? boolean Remove their configuration files as well, as far as the package manager keeps those.
---@field timeout? number Seconds for all of it, waiting for locks included; 300 unless said otherwise.

---Have packages not installed, which nothing takes back.
---Changes the guest.
---A call that fails is not taken back by itself.
---@param names string[] Names of packages. What depends on them is removed as well, and listed among the changes.
---@param options? package.remove.options
---@return boolean changed
function package.remove(names, options) end

---@class (exact) package.update.options
---@field refresh? boolean false: use the lists of what is available that are there; else they are read anew first.
---@field timeout? number Seconds for all of it, waiting for locks included; 300 unless said otherwise.

---Bring packages, or all, to the newest version, which nothing takes back.
---Changes the guest.
---A call that fails is not taken back by itself.
---@param names? string[] Names of packages, which must be installed; without any, all that are.
---@param options? package.update.options
---@return boolean changed
function package.update(names, options) end

---The version of an installed package.
---@param name string The name of one package; on dpkg it may end in :architecture, on rpm in .architecture.
---@return string version
function package.version(name) end

---@class (exact) quantix.room.power
power = {}

---@class (exact) power.poweroff.options
---@field message? string What the users who are logged in are told.

---Switch the guest off, after the commit.
---Changes the guest.
---@param delay? integer Seconds from the commit to the shutdown; 0: at once.
---@param options? power.poweroff.options
function power.poweroff(delay, options) end

---@class (exact) power.reboot.options
---@field message? string What the users who are logged in are told.

---Boot the guest again, after the commit.
---Changes the guest.
---@param delay? integer Seconds from the commit to the shutdown; 0: at once.
---@param options? power.reboot.options
function power.reboot(delay, options) end

---@class (exact) quantix.room.process
process = {}

---@class (exact) process.kill.options
---@field start_ticks? integer start_ticks of the process that is meant: another one that has its pid by now gets no signal. 0: whichever has the pid.

---Send a signal to a process, which nothing takes back.
---May change the guest.
---@param pid integer Whom; 0, 1, kernel threads and the agent itself are refused.
---@param signal? string USR1, SIGUSR1 or a number; TERM unless said otherwise. "0" sends nothing, and raises unless a signal could be sent.
---@param options? process.kill.options
function process.kill(pid, signal, options) end

---@class (exact) process.list.options
---@field sort? string pid, name or started, each ascending, or cpu or memory, each with the largest first; pid unless said otherwise.
---@field reverse? boolean The other way round.
---@field max? integer List at most so many, the first in order; 0: all.
---@field threads? boolean Threads as well.
---@field omit_arguments? boolean Leave the arguments out of command_line: they may hold secrets.

---The processes with their present use of processors.
---@param filter? string A part of the name, in any case; without it, all are listed.
---@param options? process.list.options
---@return quantix.Process[] processes
function process.list(filter, options) end

---@class (exact) quantix.room.registry
registry = {}

---@class (exact) registry.get.options
---@field view? integer 32: what programs of 32 bits see. 64, or without it, what programs of 64 bits see. A need names a key of the former as HKLM32\SOFTWARE\Maker\Program.
---@field raw? boolean The bytes as they are stored, whatever the type is.

---A value of the registry of Windows; nil where there is none.
---@param key string Below HKLM or HKU, as in HKLM\SOFTWARE\Maker\Program, in any case.
---@param name? string The name of a value; without it, the default value of the key.
---@param options? registry.get.options
---@return any value
function registry.get(key, name, options) end

---@class (exact) registry.remove.options
---@field recursive? boolean With a key, all that is below it as well: else a key that has values or keys is refused.
---@field view? integer 32: what programs of 32 bits see.

---Remove a value of the registry, or a key.
---Changes the guest.
---@param key string Below HKLM or HKU, in any case.
---@param name? string The value that is removed, "" for the default value; without it, the key.
---@param options? registry.remove.options
---@return boolean changed
function registry.remove(key, name, options) end

---@class (exact) registry.set.options
---@field view? integer 32: what programs of 32 bits see.

---Set a value of the registry, and make its key.
---Changes the guest.
---@param key string Below HKLM or HKU, as in HKLM\SOFTWARE\Maker\Program, in any case. It is made where it is missing, with those above it.
---@param name string The name of a value; empty: the default value of the key.
---@param value any A string, a whole number, or a list of strings. A qword that is beyond 2^53 is a string of digits.
---@param type? string sz, expand_sz, multi_sz, dword, qword or binary, also with REG_ ahead, in any case. Without it: sz for a string, dword for a number, multi_sz for a list, and what there is already where that can hold the value.
---@param options? registry.set.options
---@return boolean changed
function registry.set(key, name, value, type, options) end

---@class (exact) quantix.room.service
service = {}

---Have the service manager read its files again; a changed file of a unit that is started needs no such call.
---Changes the guest.
function service.daemon_reload() end

---@class (exact) service.disable.options
---@field now? boolean With enable, start it as well; with disable and mask, stop it.

---No longer have a unit start with the guest.
---Changes the guest.
---@param name string nginx or nginx.service, backup.timer, getty@tty1
---@param options? service.disable.options
---@return boolean changed
function service.disable(name, options) end

---@class (exact) service.enable.options
---@field now? boolean With enable, start it as well; with disable and mask, stop it.

---Have a unit start with the guest.
---Changes the guest.
---@param name string nginx or nginx.service, backup.timer, getty@tty1
---@param options? service.enable.options
---@return boolean changed
function service.enable(name, options) end

---@class (exact) service.list.options
---@field running? boolean Only those that run.

---The services with their states.
---@param filter? string A part of the name, in any case; without it, all are listed.
---@param options? service.list.options
---@return quantix.Service[] services
function service.list(filter, options) end

---@class (exact) service.mask.options
---@field now? boolean With enable, start it as well; with disable and mask, stop it.

---Keep a unit from being started at all.
---Changes the guest.
---@param name string nginx or nginx.service, backup.timer, getty@tty1
---@param options? service.mask.options
---@return boolean changed
function service.mask(name, options) end

---@class (exact) service.reload.options
---@field timeout? number Seconds to wait for the service manager to do it; 0: as long as the script may run.

---Have a unit read its configuration again.
---Changes the guest.
---A call that fails is not taken back by itself.
---@param name string nginx or nginx.service, backup.timer, getty@tty1
---@param options? service.reload.options
---@return boolean changed
function service.reload(name, options) end

---@class (exact) service.restart.options
---@field timeout? number Seconds to wait for the service manager to do it; 0: as long as the script may run.

---Restart a unit, or start it.
---Changes the guest.
---A call that fails is not taken back by itself.
---@param name string nginx or nginx.service, backup.timer, getty@tty1
---@param options? service.restart.options
---@return boolean changed
function service.restart(name, options) end

---@class (exact) service.start.options
---@field timeout? number Seconds to wait for the service manager to do it; 0: as long as the script may run.

---Start a unit, unless it is active.
---Changes the guest.
---A call that fails is not taken back by itself.
---@param name string nginx or nginx.service, backup.timer, getty@tty1
---@param options? service.start.options
---@return boolean changed
function service.start(name, options) end

---The state of a unit; one that is not there is an error.
---@param name string nginx or nginx.service, backup.timer, getty@tty1
---@return quantix.Service result
function service.status(name) end

---@class (exact) service.stop.options
---@field timeout? number Seconds to wait for the service manager to do it; 0: as long as the script may run.

---Stop a unit.
---Changes the guest.
---A call that fails is not taken back by itself.
---@param name string nginx or nginx.service, backup.timer, getty@tty1
---@param options? service.stop.options
---@return boolean changed
function service.stop(name, options) end

---@class (exact) service.unmask.options
---@field now? boolean With enable, start it as well; with disable and mask, stop it.

---Take back what mask did.
---Changes the guest.
---@param name string nginx or nginx.service, backup.timer, getty@tty1
---@param options? service.unmask.options
---@return boolean changed
function service.unmask(name, options) end

---@class (exact) quantix.room.tx
tx = {}

---What the script changed so far.
---@return quantix.ScriptChange[] changes
function tx.changes() end

---Have a unit restarted after the last line of the script, once; if it fails then, the script is rolled back. What is done to a unit after the last line of the script, before the commit.
---Changes the guest.
---@param unit string nginx or nginx.service, backup.timer, getty@tty1; or netplan, whose only action is apply: netplan.apply.
---@param action? string restart, reload, start or reload-or-restart; restart unless said otherwise.
function tx.notify(unit, action) end

---@class (exact) tx.on_commit.options
---@field cwd? string Where it is run; / unless it is said.
---@field env? table<string, string> Added to a clean environment.
---@field user? string Who runs it, by name or number.
---@field group? string A group, by name or number.
---@field timeout? number Seconds; 0: as long as a command of the host may take.

---Have a command run once the script has committed. A command that runs once the script has committed, at least once: after a power cut it may run again.
---Changes the guest.
---@param argv string[] The program and its arguments.
---@param options? tx.on_commit.options
function tx.on_commit(argv, options) end

---@class (exact) tx.on_rollback.options
---@field cwd? string Where it is run; / unless it is said.
---@field env? table<string, string> Added to a clean environment.
---@field user? string Who runs it, by name or number.
---@field group? string Its group, where that is not the user's.
---@field timeout? number Seconds; 0: as long as a command of the host may take.
---@field undo_ok? integer[] The exit codes that mean that there was nothing to undo.
---@field undo_if? string[] A command that changes nothing and says whether there is anything to undo. On exit code 0 argv runs, on 1 to 125 it does not; any other end fails the rollback, as does that it failed since it may not write.

---Have a rollback run a command when it comes to this point. A command that a rollback runs in its turn. It must be idempotent.
---Changes the guest.
---@param argv string[] The program and its arguments.
---@param options? tx.on_rollback.options
function tx.on_rollback(argv, options) end

---@class (exact) quantix.room.test
test = {}

---@class (exact) test.command.options
---@field code? integer Its exit status.
---@field stdout? string What it wrote.
---@field stderr? string What it wrote there.
---@field write? table<string, string> Files that it writes, each with its content, and their directories.
---@field remove? string[] What it removes, with all that is below.
---@field exists? string The answer counts only while something is at this path.

---Say what a command of the script answers; others succeed and say nothing. What a command answers. Of several answers that fit, the last one given counts.
---@param command string The command as a shell would read it; * stands for anything.
---@param options? test.command.options
function test.command(command, options) end

---@class (exact) test.crash.options
---@field secrets? table<string, string> Values by their names.
---@field attachments? table<string, string> Files that are sent along, by name.

---Do at each call that changes something, 25 at most, what test.crash_at does at one. The agent is killed at the calls in turn. Of more than 25 it takes as many, evenly.
---@param params? table As they would be given by -p.
---@param options? test.crash.options
---@return integer kills
function test.crash(params, options) end

---@class (exact) test.crash_at.options
---@field secrets? table<string, string> Values by their names.
---@field attachments? table<string, string> Files that are sent along, by name.

---On a copy of the tree, kill the agent at a call that changes something, start it again, and compare: all must be as it was. The agent is killed at the call, and started again.
---@param call integer Which of the calls that change something, from 1.
---@param params? table As they would be given by -p.
---@param options? test.crash_at.options
---@return integer kills
function test.crash_at(call, params, options) end

---@class (exact) test.run.options
---@field secrets? table<string, string> Values by their names.
---@field attachments? table<string, string> Files that are sent along, by name.
---@field dry_run? boolean Only foretell what would be changed.
---@field again? boolean Run it once more on a copy, where it must change nothing; true unless said otherwise.
---@field fails? string It must fail with an error that has this text in it, and leave the tree as it was. Without it, it must not fail.
---@field foretold? boolean A dry run before it must foretell the same changes.

---Run the script, and once more on a copy of the tree, where it must change nothing.
---@param params? table As they would be given by -p.
---@param options? test.run.options
---@return quantix.Trial result
function test.run(params, options) end

---What the script was given.
---@type table<string, any>
params = {}

---The secrets that were given; they are never logged.
---@type table<string, string>
secrets = {}

---@class (exact) quantix.Param
---@field type "string"|"integer"|"number"|"boolean"|"list"|"map"|"enum"|"path"|"ip"|"cidr"|"hostname"
---@field required? boolean
---@field default? any
---@field enum? any[]
---@field pattern? string
---@field min? number Of a number its value, of a text its bytes, of a list its length.
---@field max? number
---@field secret? boolean
---@field description? string

---@class (exact) quantix.Declaration
---@field name string
---@field version? string
---@field description? string
---@field params? table<string, quantix.Param>
---@field needs? string[]
---@field timeout? number|string
---@field confirm? number|string
---@field readonly? boolean
---@field os? ("linux"|"windows")[]
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
---In one line, or with 1 to 8 blanks for each level.
---@param value any
---@param options? {indent: integer}
---@return string
function json.encode(value, options) end
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
