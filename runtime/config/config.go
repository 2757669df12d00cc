// Package config reads agent.yaml, strictly: what it does not understand is an error with its line and key, never a
// default.
//
//	agent.yaml ─► Parse ─► Config, warnings
//	                └────► error: the agent then refuses all but ping and get_capabilities
//
// Not here: flags, and what a setting does.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"aead.dev/minisign"
	"gopkg.in/yaml.v3"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Config is what agent.yaml says, with defaults for what it does not.
type Config struct {
	TelemetryInterval time.Duration // telemetry_interval_secs: 5 s
	MaxExecTimeout    time.Duration // max_exec_timeout_secs: 300 s; default and upper bound of execute
	MaxChunkSize      int           // max_chunk_size: 65,536 bytes; no effect yet: a file_read returns what fits into a small frame
	LogLevel          string        // log_level: trace, debug, info, warn or error
	LogFormat         string        // log_format: json or pretty
	LogFile           string        // log_file: empty is stderr
	LogMaxSize        int64         // log_max_size_bytes: 10 MiB, then the file is rotated
	LogMaxFiles       int           // log_max_files: 5 kept
	Device            string        // device_path: auto, a path, unix:PATH, unix-connect:PATH, pipe:NAME, vsock:NUMBER
	Transport         string        // transport: auto is what device_path says; virtio-serial, unix or vsock hold it to that
	VsockPort         uint32        // vsock_port: 9443, for transport vsock
	VsockCIDs         []uint32      // vsock_allow_cids: who may connect, for transport vsock; 2, the host, unless it is said
	VsockUnprivileged bool          // vsock_unprivileged: false; peers may connect from ports that are not root's
	Framing           wire.Framing  // framing: auto, plain or qtx1
	PreFreezeDir      string        // pre_freeze_script_dir: the hooks that run before a freeze; empty: none
	PostThawDir       string        // post_thaw_script_dir: those of its end
	UpdateKey         string        // update.public_key: who signs agents, as minisign writes it; empty: updates are off
	UpdateDowngrade   bool          // update.allow_downgrade: a host may ask for an older version
	UpdateConfirm     time.Duration // update.confirm_seconds: 120 s; a host must be heard in it after each start of a new version
	Clipboard         Clipboard
	Script            Script
	Security          Security
}

// Clipboard says who may use the clipboard of the desktop; a key under clipboard in agent.yaml each.
type Clipboard struct {
	ToGuest   bool // to_guest: true; hosts and scripts may set it
	FromGuest bool // from_guest: true; they may read it, and watch it for changes
	Changes   bool // changes: false; each host is sent changes, also one that did not ask for them
	MaxEvent  int  // max_event_bytes: 1 MiB; an event has no more content than this
}

// Script are the limits of a script; a key under script in agent.yaml each.
type Script struct {
	Memory  int64         // memory_limit_bytes: 64 MiB of Go heap in the runner
	CPU     time.Duration // cpu_limit_seconds: 30 s of processor time
	Wall    time.Duration // timeout_seconds: 300 s, waiting included
	Source  int           // max_source_bytes: 256 KiB
	Calls   int           // max_calls: 10,000 calls of builtins
	Depth   int           // max_depth: 1024 functions that wait for one another
	Lines   int           // max_log_lines: 10,000
	Log     int           // max_log_bytes: 256 KiB
	Result  int           // max_result_bytes: 1 MiB
	Enabled bool          // enabled: true
}

// Default is the configuration of an agent without a file.
func Default() Config {
	return Config{
		TelemetryInterval: 5 * time.Second,
		MaxExecTimeout:    300 * time.Second,
		MaxChunkSize:      65536,
		LogLevel:          "info", LogFormat: "json", LogMaxSize: 10 << 20, LogMaxFiles: 5,
		Device: "auto", Transport: "auto", VsockPort: 9443, VsockCIDs: []uint32{2},
		PreFreezeDir: defaultPreFreezeDir, PostThawDir: defaultPostThawDir, UpdateConfirm: 120 * time.Second,
		Clipboard: Clipboard{ToGuest: true, FromGuest: true, MaxEvent: 1 << 20},
		Script: Script{Memory: 64 << 20, CPU: 30 * time.Second, Wall: 300 * time.Second, Source: 256 << 10, Calls: 10000, Depth: 1024,
			Lines: 10000, Log: 256 << 10, Result: 1 << 20, Enabled: true},
	}
}

// Load reads a file. For one that does not exist it returns the defaults.
func Load(path string) (c Config, warnings []string, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil, nil
	}
	if err != nil {
		return Default(), nil, err
	}
	c, warnings, err = Parse(text)
	c.Security.File = filepath.Base(path)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return c, warnings, err
}

// Parse reads the text of a file. Together with an error it returns the defaults, but for the channel and the log, which are
// needed to report the fault. The error names every fault with its line and key.
func Parse(text []byte) (c Config, warnings []string, err error) {
	var document, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&document); err != nil && !errors.Is(err, io.EOF) {
		return Default(), nil, fault.YAML(err, text)
	}
	p := parser{config: Default()}
	if err := decoder.Decode(&second); err == nil {
		p.fault(&second, "---", "the file holds more than one document")
	} else if !errors.Is(err, io.EOF) {
		p.faults = append(p.faults, fault.YAML(err, text))
	}
	if len(document.Content) > 0 && document.Content[0].Tag != "!!null" {
		p.mapping("", document.Content[0])
	}
	if p.transport != nil {
		if err := p.config.checkTransport(); err != nil {
			p.fault(p.transport, "transport", "%v", err)
		}
	}
	if other := p.config.Security.OtherPorts; len(other) > 0 {
		p.faults = append(p.faults, fmt.Errorf("line %d: security.other_ports: is for the sections of ports alone", other[0].Line))
	}
	if err := errors.Join(p.faults...); err != nil {
		return p.config.channelAndLog(), p.warnings, err
	}
	return p.config, append(p.warnings, p.config.Security.warnings()...), nil
}

// channelAndLog returns the defaults, but for the keys that say how to reach the host and the log.
func (c Config) channelAndLog() Config {
	d := Default()
	d.Device, d.Framing, d.Transport = c.Device, c.Framing, c.Transport
	d.VsockPort, d.VsockCIDs, d.VsockUnprivileged = c.VsockPort, c.VsockCIDs, c.VsockUnprivileged
	if d.checkTransport() != nil {
		d.Transport = "auto"
	}
	d.LogLevel, d.LogFormat, d.LogFile, d.LogMaxSize, d.LogMaxFiles = c.LogLevel, c.LogFormat, c.LogFile, c.LogMaxSize, c.LogMaxFiles
	return d
}

// checkTransport returns why transport and device_path contradict each other, if they do.
func (c Config) checkTransport() error {
	unix := strings.HasPrefix(c.Device, unixPrefix) || strings.HasPrefix(c.Device, unixConnectPrefix)
	vsock := strings.HasPrefix(c.Device, vsockPrefix)
	pipe := strings.HasPrefix(c.Device, pipePrefix)
	switch {
	case c.Transport == "unix" && !unix:
		return errors.New("unix needs a device_path of unix:PATH or unix-connect:PATH")
	case c.Transport == "virtio-serial" && (unix || vsock || pipe):
		return fmt.Errorf("virtio-serial and the device_path %s contradict each other", c.Device)
	case c.Transport == "vsock" && c.Device != "auto":
		return fmt.Errorf("vsock takes vsock_port, and not the device_path %s", c.Device)
	}
	return nil
}

// Channel returns the device specification of the ports to serve, as port.Open takes it.
func (c Config) Channel() string {
	if c.Transport != "vsock" {
		return c.Device
	}
	cids := make([]string, len(c.VsockCIDs))
	for i, cid := range c.VsockCIDs {
		cids[i] = strconv.FormatUint(uint64(cid), 10)
	}
	spec := fmt.Sprintf(vsockPrefix+"%d:%s", c.VsockPort, strings.Join(cids, ","))
	if c.VsockUnprivileged {
		spec += ":unprivileged"
	}
	return spec
}

// parser reads one document.
type parser struct {
	transport *yaml.Node // the value of that key; nil: it is not there
	config    Config
	warnings  []string
	faults    []error
}

func (p *parser) fault(node *yaml.Node, key, format string, args ...any) {
	p.faults = append(p.faults, fmt.Errorf("line %d: %s: %s", node.Line, key, fmt.Sprintf(format, args...)))
}

// sections are the keys whose values hold keys.
var sections = map[string]bool{"security": true, "health": true, "script": true, "update": true, "clipboard": true}

// ignoredKeys are read and checked, but nothing uses them yet.
var ignoredKeys = map[string]bool{
	"max_chunk_size": true,
	"health.enabled": true, "health.interval_secs": true, "health.telemetry_timeout_secs": true,
}

// renamedKeys are keys as packages of other agents ship them, and what they are called here; empty: nothing uses it. Each is
// accepted with a warning. Beside them there is clipboard_enabled, which stands for two keys.
var renamedKeys = map[string]string{
	"telemetry_interval": "telemetry_interval_secs",
	"pre_freeze_scripts": "pre_freeze_script_dir",
	"post_thaw_scripts":  "post_thaw_script_dir",
}

func (p *parser) mapping(prefix string, node *yaml.Node) {
	if prefix != "" && node.Tag == "!!null" {
		return // a section whose keys are commented out
	}
	if node.Kind != yaml.MappingNode {
		p.fault(node, strings.TrimSuffix(prefix, "."), "must hold keys")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		name := prefix + key.Value
		if now, known := renamedKeys[name]; known {
			p.warnings = append(p.warnings, warnRenamed(key.Line, name, now))
			if name = now; now == "" {
				continue
			}
		}
		if name == "transport" {
			p.transport = value
		}
		if name == "clipboard_enabled" {
			p.warnings = append(p.warnings, warnRenamed(key.Line, name, "clipboard.to_guest and clipboard.from_guest"))
		}
		setter, known := keys[name]
		if !known {
			setter, known = securityKeys[name]
		}
		switch {
		case seen[name]:
			p.fault(key, name, "stands twice")
		case sections[name]:
			p.mapping(name+".", value)
		case name == "security.ports":
			p.ports(value)
		case !known:
			p.fault(key, name, "unknown key")
		default:
			if err := setter(&p.config, value); err != nil {
				p.fault(value, name, "%v", err)
			}
			if ignoredKeys[name] {
				p.warnings = append(p.warnings, fmt.Sprintf("line %d: %s has no effect yet", key.Line, name))
			}
		}
		seen[name] = true
	}
}

func warnRenamed(line int, old, now string) string {
	if now == "" {
		return fmt.Sprintf("line %d: %s has no effect", line, old)
	}
	return fmt.Sprintf("line %d: %s is spelt %s", line, old, now)
}

// keys are the keys of agent.yaml, and what reads the value of each; securityKeys has more.
var keys = map[string]func(*Config, *yaml.Node) error{
	"telemetry_interval_secs": readSeconds(1, 86400, func(c *Config) *time.Duration { return &c.TelemetryInterval }),
	"max_exec_timeout_secs":   readSeconds(1, 7*86400, func(c *Config) *time.Duration { return &c.MaxExecTimeout }),
	"max_chunk_size":          readNumber(1, 10<<20, func(c *Config, n int64) { c.MaxChunkSize = int(n) }),
	"log_level":               readText(func(c *Config) *string { return &c.LogLevel }, "trace", "debug", "info", "warn", "error"),
	"log_format":              readText(func(c *Config) *string { return &c.LogFormat }, "json", "pretty"),
	"log_file":                readText(func(c *Config) *string { return &c.LogFile }),
	"log_max_size_bytes":      readNumber(1<<20, math.MaxInt64, func(c *Config, n int64) { c.LogMaxSize = n }),
	"log_max_files":           readNumber(1, 1000, func(c *Config, n int64) { c.LogMaxFiles = int(n) }),
	"transport":               readText(func(c *Config) *string { return &c.Transport }, "auto", "virtio-serial", "unix", "vsock"),
	"vsock_port":              readNumber(1, math.MaxUint32-1, func(c *Config, n int64) { c.VsockPort = uint32(n) }),
	"vsock_allow_cids":        readCIDs,
	"vsock_unprivileged":      readBool(func(c *Config, on bool) { c.VsockUnprivileged = on }),
	"device_path":             readText(func(c *Config) *string { return &c.Device }),
	"framing": func(c *Config, node *yaml.Node) error {
		f, err := wire.ParseFraming(node.Value)
		if err == nil && (node.Kind != yaml.ScalarNode || node.Value == "") {
			err = errors.New("is none of auto, plain, qtx1")
		}
		if err == nil {
			c.Framing = f
		}
		return err
	},
	"pre_freeze_script_dir": readText(func(c *Config) *string { return &c.PreFreezeDir }),
	"post_thaw_script_dir":  readText(func(c *Config) *string { return &c.PostThawDir }),

	"update.public_key":      readKey,
	"update.allow_downgrade": readBool(func(c *Config, on bool) { c.UpdateDowngrade = on }),
	"update.confirm_seconds": readSeconds(10, 3600, func(c *Config) *time.Duration { return &c.UpdateConfirm }),

	"health.enabled":                readBool(func(*Config, bool) {}),
	"health.interval_secs":          readNumber(1, 86400, func(*Config, int64) {}),
	"health.telemetry_timeout_secs": readNumber(1, 86400, func(*Config, int64) {}),

	"clipboard_enabled":         readBool(func(c *Config, on bool) { c.Clipboard.ToGuest, c.Clipboard.FromGuest = on, on }),
	"clipboard.to_guest":        readBool(func(c *Config, on bool) { c.Clipboard.ToGuest = on }),
	"clipboard.from_guest":      readBool(func(c *Config, on bool) { c.Clipboard.FromGuest = on }),
	"clipboard.changes":         readBool(func(c *Config, on bool) { c.Clipboard.Changes = on }),
	"clipboard.max_event_bytes": readNumber(1, 15<<20, func(c *Config, n int64) { c.Clipboard.MaxEvent = int(n) }),

	"script.enabled":            readBool(func(c *Config, on bool) { c.Script.Enabled = on }),
	"script.memory_limit_bytes": readNumber(16<<20, 1<<40, func(c *Config, n int64) { c.Script.Memory = n }),
	"script.cpu_limit_seconds":  readSeconds(1, 86400, func(c *Config) *time.Duration { return &c.Script.CPU }),
	"script.timeout_seconds":    readSeconds(1, 7*86400, func(c *Config) *time.Duration { return &c.Script.Wall }),
	"script.max_source_bytes":   readNumber(1, 8<<20, func(c *Config, n int64) { c.Script.Source = int(n) }),
	"script.max_log_lines":      readNumber(1, 1_000_000, func(c *Config, n int64) { c.Script.Lines = int(n) }),
	"script.max_log_bytes":      readNumber(1, 8<<20, func(c *Config, n int64) { c.Script.Log = int(n) }),
	"script.max_result_bytes":   readNumber(1, 8<<20, func(c *Config, n int64) { c.Script.Result = int(n) }),
	"script.max_depth":          readNumber(64, 16384, func(c *Config, n int64) { c.Script.Depth = int(n) }),
	"script.max_calls":          readNumber(1, math.MaxInt32, func(c *Config, n int64) { c.Script.Calls = int(n) }),
}

// readBool reads true or false.
func readBool(set func(*Config, bool)) func(*Config, *yaml.Node) error {
	return func(c *Config, node *yaml.Node) error {
		var on bool
		if node.Tag != "!!bool" || node.Decode(&on) != nil {
			return fmt.Errorf("%q is not true or false", node.Value)
		}
		set(c, on)
		return nil
	}
}

// readCIDs reads a list of context ids.
func readCIDs(c *Config, node *yaml.Node) error {
	var list []uint32
	if err := node.Decode(&list); err != nil || node.Kind != yaml.SequenceNode || len(list) == 0 {
		return errors.New("is no list of context ids, such as [2]")
	}
	c.VsockCIDs = list
	return nil
}

// readKey reads a public key of minisign.
func readKey(c *Config, node *yaml.Node) error {
	var key minisign.PublicKey
	if node.Kind == yaml.ScalarNode && node.Tag == "!!str" && node.Value == "" {
		c.UpdateKey = ""
		return nil
	}
	if node.Kind != yaml.ScalarNode || key.UnmarshalText([]byte(node.Value)) != nil {
		return errors.New("is no public key of minisign: the second line of its file .pub, such as RWQ…")
	}
	c.UpdateKey = node.Value
	return nil
}

// readNumber reads a whole number from low to high.
func readNumber(low, high int64, set func(*Config, int64)) func(*Config, *yaml.Node) error {
	return func(c *Config, node *yaml.Node) error {
		n, err := strconv.ParseInt(node.Value, 0, 64)
		if err != nil || node.Tag != "!!int" {
			return fmt.Errorf("%q is not a whole number", node.Value)
		}
		if n < low || n > high {
			return fmt.Errorf("%d is not between %d and %d", n, low, high)
		}
		set(c, n)
		return nil
	}
}

// readSeconds reads a whole number of seconds from low to high.
func readSeconds(low, high int64, field func(*Config) *time.Duration) func(*Config, *yaml.Node) error {
	return readNumber(low, high, func(c *Config, n int64) { *field(c) = time.Duration(n) * time.Second })
}

// readText reads a text; with choices it must be one of them.
func readText(field func(*Config) *string, choices ...string) func(*Config, *yaml.Node) error {
	return func(c *Config, node *yaml.Node) error {
		if node.Kind != yaml.ScalarNode || node.Tag != "!!str" {
			return fmt.Errorf("%q is not a text", node.Value)
		}
		for i := 0; i <= len(choices); i++ {
			if len(choices) == 0 || i < len(choices) && choices[i] == node.Value {
				*field(c) = node.Value
				return nil
			}
		}
		return fmt.Errorf("%q is none of %s", node.Value, strings.Join(choices, ", "))
	}
}
