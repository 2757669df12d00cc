package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/wire"
)

func TestWhatIsNotSaidIsDefault(t *testing.T) {
	for _, text := range []string{"", "---\n", "# nothing\n", "security:\n", "security:\n  command_allowlist: []\n  max_commands_per_minute: 0\n  audit_logging: false\n"} {
		c, warnings, err := Parse([]byte(text))
		if err != nil || len(warnings) > 0 || !reflect.DeepEqual(c, Default()) {
			t.Errorf("%q: %v, %v", text, warnings, err)
		}
	}
	if _, _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); err != nil {
		t.Error("a missing file is no fault:", err)
	}
}

func TestKeysAreRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.yaml")
	text := "telemetry_interval_secs: 9\nlog_level: debug\nframing: qtx1\ndevice_path: unix:/run/x\nscript:\n  cpu_limit_seconds: 3\n  enabled: false\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, warnings, err := Load(path)
	if err != nil || len(warnings) > 0 {
		t.Fatal(warnings, err)
	}
	if c.TelemetryInterval != 9*time.Second || c.LogLevel != "debug" || c.Framing != wire.QTX1 || c.Device != "unix:/run/x" ||
		c.Script.CPU != 3*time.Second || c.Script.Enabled || c.MaxChunkSize != 65536 {
		t.Errorf("%+v", c)
	}
}

func TestUpdateKeysAreRead(t *testing.T) {
	const key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3" // of minisign's own page
	c, warnings, err := Parse([]byte("update:\n  public_key: " + key + "\n  confirm_seconds: 30\n"))
	if err != nil || len(warnings) > 0 || c.UpdateKey != key || c.UpdateConfirm != 30*time.Second {
		t.Errorf("%+v, %q, %v", c, warnings, err)
	}
}

func TestMisspeltKeysOfOtherPackagesAreUnderstood(t *testing.T) {
	c, warnings, err := Parse([]byte("telemetry_interval: 7\nclipboard_enabled: false\npre_freeze_scripts: /a\npost_thaw_scripts: /b\n"))
	if err != nil || len(warnings) != 4 || c.TelemetryInterval != 7*time.Second || c.PreFreezeDir != "/a" || c.PostThawDir != "/b" ||
		c.Clipboard.ToGuest || c.Clipboard.FromGuest {
		t.Errorf("%+v, %q, %v", c, warnings, err)
	}
}

func TestTheClipboardIsOnUnlessItIsTurnedOff(t *testing.T) {
	c, warnings, err := Parse([]byte("clipboard:\n  to_guest: false\n  changes: true\n  max_event_bytes: 100\n"))
	want := Clipboard{FromGuest: true, Changes: true, MaxEvent: 100}
	if err != nil || len(warnings) != 0 || c.Clipboard != want {
		t.Errorf("%+v, %q, %v", c.Clipboard, warnings, err)
	}
	if d := Default().Clipboard; !d.ToGuest || !d.FromGuest || d.Changes || d.MaxEvent != 1<<20 {
		t.Errorf("by default: %+v", d)
	}
	for _, text := range []string{"clipboard:\n  to_guest: 1\n", "clipboard:\n  max_event_bytes: 0\n", "clipboard:\n  unknown: true\n"} {
		if _, _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), "line 2: clipboard.") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A fault names its line and key, all faults are named, and none of the file takes effect.
func TestFaultsAreNamedWithLineAndKey(t *testing.T) {
	for text, want := range map[string]string{
		"log_level: debug\ntelemetri: 5\n":                           "line 2: telemetri: unknown key",
		"telemetry_interval_secs: 0\n":                               "line 1: telemetry_interval_secs: 0 is not between 1 and 86400",
		"telemetry_interval_secs: five\n":                            `line 1: telemetry_interval_secs: "five" is not a whole number`,
		"health:\n  interval_secs: 0\n":                              "line 2: health.interval_secs: 0 is not between",
		"update:\n  public_key: nonsense\n":                          "line 2: update.public_key: is no public key of minisign",
		"update:\n  public_key: [a]\n":                               "line 2: update.public_key: is no public key of minisign",
		"update:\n  confirm_seconds: 9\n":                            "line 2: update.confirm_seconds: 9 is not between 10 and 3600",
		"security:\n  command_allowlist: [a  b]\n":                   "is no program, alone or with its arguments",
		"security:\n  command_allowlist: [a b*]\n":                   "* stands for a whole one",
		"security:\n  command_environment: [A=b]\n":                  "is no name of an environment variable",
		"security:\n  other_ports: ['*']\n":                          "line 2: security.other_ports: is for the sections of ports alone",
		"security:\n  ports:\n    '*': {other_ports: [a]}\n":         `line 3: security.ports.*.other_ports: line 3: "a" is no name of a port`,
		"security:\n\tcommand_allowlist: [a]\n":                      "line 2",
		"security:\n  command_blocklist: [rm -rf]\n":                 `line 2: security.command_blocklist: line 2: "rm -rf" is no program`,
		"security:\n  command_allowlist: rm\n":                       "line 2: security.command_allowlist: is no list",
		"security:\n  deny_file_read_paths:\n  - etc\n":              `line 3: security.deny_file_read_paths: line 3: "etc" is no absolute path`,
		"security:\n  deny_file_read_paths: [/etc/*]\n":              "has a wildcard",
		"security:\n  allow_file_write_paths: [7]\n":                 "an element is not a text",
		"security:\n  read_only: 1\n":                                `"1" is not true or false`,
		"security:\n  max_commands_per_minute: -1\n":                 "-1 is not between 0 and 1000000",
		"security:\n  read_onli: true\n":                             "security.read_onli: unknown key",
		"security:\n  ports: [a]\n":                                  "line 2: security.ports: must hold names of ports",
		"security:\n  ports:\n    org.quantix.agent1: {}\n":          "line 3: security.ports.org.quantix.agent1: is no name of a port",
		"security:\n  ports:\n    unix:/a:\n      read_onli: true\n": "line 4: security.ports.unix:/a.read_onli: unknown key",
		"security:\n  ports:\n    \"*\": {audit_logging: true}\n":    "are for the general section alone",
		"security:\n  ports:\n    \"*\": {ports: {\"*\": {}}}\n":     "are for the general section alone",
		"security:\n  ports:\n    \"*\": {}\n    \"*\": {}\n":        "line 4: security.ports.*: stands twice",
		"security:\n  deny_operations: ['file.[!r]*']\n":             "is no name of an operation",
		"security:\n  deny_operations: ['{exec,file}.*']\n":          "is no name of an operation",
		"security:\n  ports:\n    'unix:/[!a]': {}\n":                "is no name of a port",
		"security: 5\n":                      "line 1: security: must hold keys",
		"log_level: loud\n":                  `line 1: log_level: "loud" is none of`,
		"log_level: 5\n":                     "is not a text",
		"log_level: info\nlog_level: info\n": "line 2: log_level: stands twice",
		"framing: both\n":                    "line 1: framing",
		"log_level: info\n---\nsecurity:\n  command_blocklist: [rm]\n": "more than one document",
		"health:\n  enabled: banana\n":                                 "line 2: health.enabled",
		"framing: [auto]\n":                                            "line 1: framing",
		"script:\n  max_log_lines: 0\n":                                "line 2: script.max_log_lines",
		"- a\n":                                                        "must hold keys",
		"script:\n  enabled: perhaps\n":                                "line 2: script.enabled",
		"telemetry_interval: 5\ntelemetry_interval_secs: 5\n":          "line 2: telemetry_interval_secs: stands twice",
		"max_chunk_size: -1\nmax_exec_timeout_secs: 99999999999\n":     "line 2: max_exec_timeout_secs",
		"max_chunk_size: 99999999999999999999999999999999999999999\n":  "line 1: max_chunk_size",
	} {
		c, _, err := Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
		if c.LogLevel, c.Framing = "info", wire.Auto; !reflect.DeepEqual(c, Default()) { // the channel and the log are needed to tell of it
			t.Errorf("%q: a part of a bad file took effect", text)
		}
	}
}

func TestChannels(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "auto",
		"transport: virtio-serial\n": "auto",
		"transport: vsock\n":         "vsock:9443:2",
		"transport: vsock\nvsock_port: 7\nvsock_allow_cids: [1, 2]\n": "vsock:7:1,2",
		"transport: vsock\nvsock_unprivileged: true\n":                "vsock:9443:2:unprivileged",
		"transport: unix\ndevice_path: unix:/run/x\n":                 "unix:/run/x",
		"device_path: pipe:quantix\n":                                 "pipe:quantix",
		"device_path: vsock:9\n":                                      "vsock:9",
	} {
		if c, _, err := Parse([]byte(text)); err != nil || c.Channel() != want {
			t.Errorf("%q: %s, %v; want %s", text, c.Channel(), err, want)
		}
	}
	for text, want := range map[string]string{
		"transport: unix\n":   "line 1: transport: unix needs a device_path",
		"transport: serial\n": "line 1: transport: \"serial\" is none of",
		"device_path: unix:/x\ntransport: virtio-serial\n": "line 2: transport: virtio-serial and the device_path unix:/x contradict",
		"transport: vsock\ndevice_path: /dev/vport0p1\n":   "line 1: transport: vsock takes vsock_port",
		"vsock_allow_cids: []\n":                           "line 1: vsock_allow_cids",
		"vsock_allow_cids: 2\n":                            "line 1: vsock_allow_cids",
		"vsock_allow_cids: [host]\n":                       "line 1: vsock_allow_cids",
		"vsock_port: 0\n":                                  "line 1: vsock_port",
	} {
		c, _, err := Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
		if strings.HasPrefix(c.Channel(), "vsock") {
			t.Errorf("%q: a faulty file opens %s", text, c.Channel())
		}
	}
}

// Names of operations have no slash, so ** is the same as * there; an agent.yaml may have either.
func TestPatternsOfOperations(t *testing.T) {
	for _, pattern := range []string{"**", "file.**", "file.*", "exec.run", "file.[a-c]*"} {
		if err := checkOperation(pattern); err != nil {
			t.Error(pattern, err)
		}
	}
}
