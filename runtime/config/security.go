package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// Security is what agent.yaml says under security: who may do what. Its zero value forbids nothing, and an empty list of
// what is allowed is no restriction either.
type Security struct {
	File              string // the name of the file, for answers; empty: none was read
	AllowedCommands   []Rule // command_allowlist: programs, by name or path, alone or with all their arguments, * for one
	AllowedVariables  []Rule // command_environment: what may be set beside what is known as harmless, under an allowlist
	DeniedCommands    []Rule // command_blocklist: programs, by name or path
	AllowedWritePaths []Rule // allow_file_write_paths: absolute paths, and what is below
	DeniedReadPaths   []Rule // deny_file_read_paths: absolute paths, and what is below
	AllowedOperations []Rule // allow_operations: names of operations, * for any text
	DeniedOperations  []Rule // deny_operations
	CommandsPerMinute Limit  // max_commands_per_minute
	FileOpsPerSecond  Limit  // max_file_ops_per_second
	ReadOnly          Switch // read_only
	Audit             Switch // audit_logging
	Ports             []PortSecurity
	OtherPorts        []Rule // other_ports: ports whose jobs and transactions those of a section of ports see and end, too
}

// PortSecurity is what holds beside the general section for the hosts on some ports: an element of ports. It can forbid
// what the general section allows, and never allow what that forbids. OtherPorts stands here
// alone.
type PortSecurity struct {
	Port     string // the name of a port as status has it, * for any text
	Line     int
	Security Security // without File, Audit and Ports
}

// Rule is an element of a list, and where it stands.
type Rule struct {
	Value string
	Line  int
}

// Limit is a number of something per time; 0: none.
type Limit struct {
	N    int
	Line int
}

// Switch is a setting that is on or off.
type Switch struct {
	On   bool
	Line int
}

// Restricts reports whether anything can be refused by it or by what holds for single ports.
func (s Security) Restricts() bool {
	return s.restricts() || slices.ContainsFunc(s.Ports, func(p PortSecurity) bool { return p.Security.restricts() })
}

func (s Security) restricts() bool {
	return len(s.AllowedCommands)+len(s.DeniedCommands)+len(s.AllowedWritePaths)+len(s.DeniedReadPaths)+len(s.AllowedOperations)+len(s.DeniedOperations) > 0 ||
		s.CommandsPerMinute.N > 0 || s.FileOpsPerSecond.N > 0 || s.ReadOnly.On
}

// warnings returns what an administrator may believe of it that is not so.
func (s Security) warnings() (list []string) {
	if len(s.DeniedCommands) > 0 && len(s.AllowedCommands) == 0 {
		list = append(list, fmt.Sprintf("line %d: security.command_blocklist is no boundary: a program that is not listed can do what a "+
			"listed one does; command_allowlist is one", s.DeniedCommands[0].Line))
	}
	open := len(s.AllowedCommands) == 0 && !s.ReadOnly.On
	if open && len(s.DeniedReadPaths) > 0 {
		list = append(list, fmt.Sprintf("line %d: security.deny_file_read_paths does not bind commands; command_allowlist says which may run", s.DeniedReadPaths[0].Line))
	}
	if open && len(s.AllowedWritePaths) > 0 {
		list = append(list, fmt.Sprintf("line %d: security.allow_file_write_paths does not bind commands; command_allowlist says which may run", s.AllowedWritePaths[0].Line))
	}
	for _, port := range s.Ports {
		list = append(list, port.Security.warnings()...)
	}
	return list
}

// securityKeys are the keys under security.
var securityKeys = map[string]func(*Config, *yaml.Node) error{
	"security.command_allowlist":       readRules(func(c *Config) *[]Rule { return &c.Security.AllowedCommands }, checkCommand),
	"security.command_environment":     readRules(func(c *Config) *[]Rule { return &c.Security.AllowedVariables }, checkVariable),
	"security.command_blocklist":       readRules(func(c *Config) *[]Rule { return &c.Security.DeniedCommands }, checkProgram),
	"security.allow_file_write_paths":  readRules(func(c *Config) *[]Rule { return &c.Security.AllowedWritePaths }, checkPath),
	"security.deny_file_read_paths":    readRules(func(c *Config) *[]Rule { return &c.Security.DeniedReadPaths }, checkPath),
	"security.allow_operations":        readRules(func(c *Config) *[]Rule { return &c.Security.AllowedOperations }, checkOperation),
	"security.deny_operations":         readRules(func(c *Config) *[]Rule { return &c.Security.DeniedOperations }, checkOperation),
	"security.max_commands_per_minute": readLimit(func(c *Config) *Limit { return &c.Security.CommandsPerMinute }),
	"security.max_file_ops_per_second": readLimit(func(c *Config) *Limit { return &c.Security.FileOpsPerSecond }),
	"security.read_only":               readSwitch(func(c *Config) *Switch { return &c.Security.ReadOnly }),
	"security.other_ports":             readRules(func(c *Config) *[]Rule { return &c.Security.OtherPorts }, checkPort),
	"security.audit_logging":           readSwitch(func(c *Config) *Switch { return &c.Security.Audit }),
}

// readRules reads a list of texts that check finds nothing wrong with. A key without a value is an empty list.
func readRules(field func(*Config) *[]Rule, check func(string) error) func(*Config, *yaml.Node) error {
	return func(c *Config, node *yaml.Node) error {
		if node.Tag == "!!null" {
			return nil
		}
		if node.Kind != yaml.SequenceNode {
			return errors.New("is no list, such as [\"a\", \"b\"]")
		}
		var list []Rule
		for _, element := range node.Content {
			if element.Kind != yaml.ScalarNode || element.Tag != "!!str" {
				return fmt.Errorf("line %d: an element is not a text", element.Line)
			}
			if err := check(element.Value); err != nil {
				return fmt.Errorf("line %d: %q %w", element.Line, element.Value, err)
			}
			list = append(list, Rule{element.Value, element.Line})
		}
		*field(c) = list
		return nil
	}
}

// ports reads the sections of single ports. Their keys are those of the general section, but for audit_logging and ports.
func (p *parser) ports(node *yaml.Node) {
	if node.Tag == "!!null" {
		return
	}
	if node.Kind != yaml.MappingNode {
		p.fault(node, "security.ports", "must hold names of ports")
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], node.Content[i+1]
		within := "security.ports." + name.Value
		if !isPortPattern(name.Value) {
			p.fault(name, within, "is no name of a port, such as org.quantix.agent.1, unix:/run/agent.sock, vsock:9443, or unix:*")
			continue
		}
		if slices.ContainsFunc(p.config.Security.Ports, func(other PortSecurity) bool { return other.Port == name.Value }) {
			p.fault(name, within, "stands twice")
			continue
		}
		section := parser{}
		section.mapping("security.", value)
		if s := section.config.Security; s.Audit.On || len(s.Ports) > 0 {
			p.fault(value, within, "audit_logging and ports are for the general section alone")
		}
		for _, fault := range section.faults {
			p.faults = append(p.faults, errors.New(strings.Replace(fault.Error(), "security", within, 1)))
		}
		p.config.Security.Ports = append(p.config.Security.Ports, PortSecurity{name.Value, name.Line, section.config.Security})
	}
}

// checkProgram checks an element of a list of commands.
func checkProgram(text string) error {
	switch {
	case text == "" || strings.ContainsAny(text, " \t\n\x00"):
		return errors.New("is no program: give a name or an absolute path, without arguments")
	case strings.ContainsAny(text, `*?[`):
		return errors.New("has a wildcard, which this list does not know")
	case strings.Contains(text, "/") && !fsys.IsAbs(text):
		return errors.New("is neither a name nor an absolute path")
	}
	return nil
}

// checkCommand checks an element of a list of commands that may have arguments.
func checkCommand(text string) error {
	words := strings.Fields(text)
	if len(words) == 0 || strings.Join(words, " ") != text {
		return errors.New("is no program, alone or with its arguments, each behind one blank")
	}
	for _, word := range words[1:] {
		if word != "*" && strings.ContainsAny(word, "*?[\x00") {
			return errors.New("has a wildcard in an argument: * stands for a whole one")
		}
	}
	return checkProgram(words[0])
}

// checkVariable checks an element of a list of environment variables.
func checkVariable(text string) error {
	if text == "" || strings.ContainsFunc(text, func(c rune) bool {
		return c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
	}) {
		return errors.New("is no name of an environment variable")
	}
	return nil
}

// checkPath checks an element of a list of paths.
func checkPath(text string) error {
	switch {
	case !fsys.IsAbs(text) || strings.Contains(text, "\x00"):
		return errors.New("is no absolute path")
	case strings.ContainsAny(text, `*?[`):
		return errors.New("has a wildcard, which this list does not know; a directory stands for all that is below it")
	case slices.Contains(fsys.Elements(text), ".."):
		return errors.New("has .. in it")
	}
	return nil
}

// checkPort checks an element of a list of ports.
func checkPort(text string) error {
	if !isPortPattern(text) {
		return errors.New("is no name of a port, such as org.quantix.agent.0, or * for any")
	}
	return nil
}

// checkOperation checks an element of a list of operations.
func checkOperation(text string) error {
	if text == "" {
		return errors.New("is no name of an operation")
	}
	if err := checkPattern(strings.ReplaceAll(text, "**", "*")); err != nil { // a name has no slash
		return fmt.Errorf("is no name of an operation: %w", err)
	}
	return nil
}

// readLimit reads how often something may happen; 0 and nothing are no limit.
func readLimit(field func(*Config) *Limit) func(*Config, *yaml.Node) error {
	return unlessNull(func(c *Config, node *yaml.Node) error {
		return readNumber(0, 1_000_000, func(c *Config, n int64) {
			if n > 0 {
				*field(c) = Limit{int(n), node.Line}
			}
		})(c, node)
	})
}

// readSwitch reads what is on or off; nothing is off.
func readSwitch(field func(*Config) *Switch) func(*Config, *yaml.Node) error {
	return unlessNull(func(c *Config, node *yaml.Node) error {
		return readBool(func(c *Config, on bool) {
			if on {
				*field(c) = Switch{on, node.Line}
			}
		})(c, node)
	})
}

// unlessNull leaves a key without a value alone.
func unlessNull(set func(*Config, *yaml.Node) error) func(*Config, *yaml.Node) error {
	return func(c *Config, node *yaml.Node) error {
		if node.Tag == "!!null" {
			return nil
		}
		return set(c, node)
	}
}
