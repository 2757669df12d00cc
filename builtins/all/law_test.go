package all

import (
	"maps"
	"runtime"
	"slices"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/builtins"
)

// Fields that several rows have.
const (
	dir   = "where a relative program is looked for: Command.Dir"
	runs  = "who runs the command: the lists are of programs, whoever runs them"
	mode  = "what others may do with the file, which the path is"
	owner = "an account that is looked up and not changed"
	plan  = "words for a dry run"

	told    = "words for the users who are logged in"
	login   = "what a login of the user runs, as the user"
	comment = "words about the user"

	hookDir = "it can name none but that of the configuration"

	signal = "what is sent to the processes, which the row names"

	unitAction = "what is done to the unit, which the row names"
)

// free are the text fields of rows that change something which mean nothing to a policy, and why. Whoever adds a row or a field
// decides: the row's Access covers it, or it is listed here, for that row.
var free = map[string]map[string]string{
	"account.create":    {"shell": login, "comment": comment},
	"account.modify":    {"shell": login, "comment": comment},
	"account.take_back": {"image": "of a record of the journal, which has its own path", "link": "of such a record", "told": "of such a record"},
	"account.ssh_keys":  {"keys": "the content of a file below the home directory, which the row names"},
	"reset_password":    {"new_password": "a secret: no rule may speak of it"},

	"agent_update": {"checksum_sha256": "of the program", "transfer": "a transfer that is under way"},

	"configure_network": {"netplan_config": "the content of a file of netplan, which the row names"},

	"exec_input": {
		"exec_id": "a command that was allowed when it was started", "job_id": "a command that was allowed when it was started",
		"signal": "for that command",
	},
	"exec_start": {
		"working_directory": dir, "run_as_user": runs, "run_as_group": runs,
		"name": "what the command is called in lists",
	},
	"execute":      {"working_directory": dir, "run_as_user": runs, "run_as_group": runs},
	"kill_process": {"signal_name": signal},
	"file_write":   {"sha256": "of the content", "upload": "a transfer to the path that is under way", "owner": owner, "group": owner},

	"exec.run":    {"cwd": dir, "user": runs, "group": runs, "plan": plan},
	"exec.sh":     {"cwd": dir, "user": runs, "group": runs, "plan": plan},
	"exec.undo":   {"cwd": dir, "user": runs, "group": runs, "plan": plan},
	"file.append": {"mode": mode, "owner": owner, "group": owner},
	"file.attributes": {
		"image": "of a record of the journal, which has its own path", "link": "of such a record", "told": "of such a record",
		"moved_to": "of a record of another operation: this one moves nothing",
	},
	"file.move_back": {"image": "of a record of the journal, which has its own path", "link": "of such a record", "told": "of such a record"},
	"file.chmod":     {"mode": mode},
	"file.chown":     {"owner": owner, "group": owner},
	"file.block": {
		"marker": "content", "text": "content", "comment": "content", "state": "present or absent", "mode": mode, "owner": owner, "group": owner,
	},
	"file.line": {
		"line": "content", "match": "a pattern of content", "after": "a pattern of content", "before": "a pattern of content",
		"state": "present or absent", "mode": mode, "owner": owner, "group": owner,
	},
	"file.mkdir":    {"mode": mode, "owner": owner, "group": owner},
	"file.replace":  {"pattern": "a pattern of content", "replacement": "content"},
	"file.symlink":  {"target": "it is only written down: whoever follows the link is asked about where it leads"},
	"file.template": {"text": "content", "mode": mode, "owner": owner, "group": owner},
	"file.write":    {"mode": mode, "owner": owner, "group": owner},
	"host.hostname": {"new": "the content of /etc/hostname, which the row names"},
	"host.keymap":   {"new": "a layout that the guest has, for /etc/vconsole.conf, which the row names"},
	"host.locale":   {"new": "a locale that the guest has, for /etc/locale.conf, which the row names"},
	"host.mount": {
		"fstype":  "how the kernel reads the source, which the row names",
		"options": "how the source is mounted at the target, which the row names, and a bind mount with all below it",
	},
	"host.mount_undo": {
		"source": "of a mount that was there before", "fstype": "of such a mount", "options": "of such a mount",
		"namespace": "tells the mounts of this boot from those of another",
	},
	"host.sysctl":   {"value": "the content of the setting"},
	"host.timezone": {"new": "a name below the directory of time zones, for /etc/localtime, which the row names"},
	"netplan.undo": {
		"checkpoint": "of NetworkManager, which the row itself made", "boot_id": "tells whether anything is to be done",
		"made": "interfaces that the room itself made", "interfaces": "what was applied, of files that the row names",
		"ifup_before": "interfaces that the room itself changed", "ifup_after": "interfaces that the room itself changed",
	},
	"power.poweroff": {"message": told},
	"power.reboot":   {"message": told},
	"power.shutdown": {"message": told, "call": "names a call of a script"},
	"process.kill":   {"signal": signal},
	"quiesce":        {"pre_freeze_script_dir": hookDir},
	"thaw":           {"quiesce_token": "names a freeze, whose file systems were allowed", "post_thaw_script_dir": hookDir},
	"shutdown":       {"message": told},
	"tx.on_rollback": {"cwd": dir, "user": runs, "group": runs},

	"exec.on_commit":   {"cwd": dir, "user": runs, "group": runs, "plan": plan},
	"registry.remove":  {"name": "a value of the key, which the row names"},
	"registry.restore": {"made": "the key, which the row names, or one that was made above it"},
	"registry.set": {
		"name": "a value of the key, which the row names", "type": "how the value is stored",
	},

	"service.notified": {"action": unitAction},
	"service.restore": {
		"action": unitAction, "invocation": "of the unit, which the row names", "boot_id": "only compared with that of the kernel",
	},
	"tx.notify":        {"action": unitAction},
	"clipboard.set":    {"type": "in which form content is", "text": "content"},
	"clipboard_update": {"mime_type": "in which form content is", "text": "content"},
	"tx.on_commit":     {"cwd": dir, "user": runs, "group": runs},
}

// deferred are the internal rows that take nothing back: they are what comes before or after a commit.
var deferred = []string{"exec.on_commit", "netplan.settled", "power.shutdown", "service.notified", "service.reread", "service.settled"}

// sameBoot are the rows that take back nothing but what ends with a boot, so that the early recovery has nothing to do.
var sameBoot = []string{"netplan.undo"}

// unpredictable are the script rows that change something and end a dry run, by name.
var unpredictable = []string{}

func table() *builtins.Table { return builtins.NewTable(New(Config{}).List()...) }

// roles returns the names of the fields that the row's Access covers.
func roles(op *builtins.Op) []string {
	return slices.Concat(op.Roles.Paths, op.Roles.Commands, op.Roles.Objects)
}

// Each text of a request that changes something is one that a policy sees, or one of which it was said that it need not.
func TestEveryTextIsSeenOrFree(t *testing.T) {
	used := map[string]bool{}
	for _, op := range table().Ops() {
		if !op.Mutates || op.Delegates {
			continue
		}
		fields := op.In.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			field := fields.Get(i)
			name := string(field.Name())
			if field.Kind() != protoreflect.StringKind || field.IsMap() {
				continue
			}
			seen := slices.Contains(roles(&op), name)
			why := free[op.Name][name]
			switch {
			case seen && why != "":
				t.Errorf("%s of %s is seen by a policy, and said to mean nothing to one", name, op.Name)
			case !seen && why == "":
				t.Errorf("it is not said what %s of %s means to a policy", name, op.Name)
			case !seen:
				used[op.Name+" "+name] = true
			}
		}
	}
	for row, fields := range free {
		for name := range maps.Keys(fields) {
			if !used[row+" "+name] && isHere(row, name) {
				t.Errorf("%s of %s is nowhere", name, row)
			}
		}
	}
}

// isHere reports whether a field can be expected: on Windows an inverse has other fields than on Linux, which this list is of.
func isHere(row, field string) bool {
	op := table().Script(row)
	return runtime.GOOS == "linux" || op == nil || op.In.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field)) != nil
}

// A row of a script that changes something is of a path, a command or an object, or else names its files itself: otherwise no
// rule could be about it.
func TestEveryChangeIsOfSomething(t *testing.T) {
	for _, op := range table().Ops() {
		if !op.Mutates || op.Delegates || op.Name == "exec_input" { // which goes on with a command that was allowed
			continue
		}
		if op.Access == nil && op.AccessIn == nil {
			t.Errorf("%s changes something, and no rule could name it", op.Name)
		}
	}
}

func TestEveryChangeIsForetoldOrEndsADryRun(t *testing.T) {
	var ending []string
	for _, op := range table().Functions() {
		if op.Mutates && !op.Predictable {
			ending = append(ending, op.Name)
		}
		if !op.Mutates && (op.Predictable || op.Partial || op.Inverse != "" || op.Readonly != nil) {
			t.Errorf("%s changes nothing, and says how it does so", op.Name)
		}
	}
	if !slices.Equal(ending, unpredictable) {
		t.Errorf("a dry run ends at %q, want %q", ending, unpredictable)
	}
}

// What takes something back is an operation for that alone, or goes both ways; at early boot there are files and nothing else.
func TestInverses(t *testing.T) {
	table, scopes := table(), New(Config{}).List()
	inverses := map[string]bool{}
	for _, op := range table.Ops() {
		if op.Inverse == "" {
			continue
		}
		inverses[op.Inverse] = true
		if inverse := table.Script(op.Inverse); !inverse.Internal && op.Inverse != op.Name {
			t.Errorf("%s is taken back by %s, which scripts call as well", op.Name, op.Inverse)
		}
	}
	for _, op := range table.Ops() {
		if op.Internal && !inverses[op.Name] && !slices.Contains(deferred, op.Name) {
			t.Errorf("%s takes nothing back", op.Name)
		}
		if by := table.Script(op.Defers); op.Defers != "" && (by == nil || !by.Internal) {
			t.Errorf("%s is done by %s, which is no internal row", op.Name, op.Defers)
		}
		if op.SameAs != nil {
			for _, name := range op.SameAs(nil) {
				native := op.Script == nil && slices.ContainsFunc(table.Ops(), func(other builtins.Op) bool { return other.Name == name })
				if same := table.Script(name); !native && (same == nil || same.Internal) {
					t.Errorf("%s is as %s, which scripts cannot call", op.Name, name)
				}
			}
		}
		if !op.Early {
			continue
		}
		if !op.Internal && op.Inverse != op.Name {
			t.Errorf("%s is no inverse, so it cannot be early", op.Name)
		}
		if slices.Contains(sameBoot, op.Name) {
			continue
		}
		scope := scopes[slices.IndexFunc(scopes, func(r builtins.Room) bool { return r.Name == op.Room() })].Scope
		if scope != builtins.ScopePaths || len(op.Roles.Commands)+len(op.Roles.Objects) > 0 || len(op.Roles.Paths) == 0 {
			t.Errorf("%s touches more than files: %+v", op.Name, op.Roles)
		}
	}
}
