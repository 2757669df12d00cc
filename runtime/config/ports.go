package config

import (
	"errors"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/port"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// What device specifications, and the names of the ports that they open, begin with; as port.Open has it. All else is the
// path of a device.
const (
	unixPrefix        = "unix:"
	unixConnectPrefix = "unix-connect:"
	vsockPrefix       = "vsock:"
	pipePrefix        = "pipe:"
)

// Protocol is what hosts speak on a port.
type Protocol string

// Native is the protocol of PROTOCOL.md.
const Native Protocol = "native"

// portNames is which names a port can have, by how they begin, and what is spoken there: the one list of both.
var portNames = []struct {
	prefix   string // more follows
	protocol Protocol
	only     bool // it is what device_path or transport names, and no other port is served beside it
}{
	{port.NamePrefix, Native, false},
	{port.LegacyNamePrefix, Native, false},
	{unixPrefix, Native, true},
	{unixConnectPrefix, Native, true},
	{vsockPrefix, Native, true},
	{pipePrefix, Native, true},
	{"/", Native, true},  // the path of a device
	{`\\`, Native, true}, // that of Windows
}

// IsOnlyPort reports whether an agent that serves a port of that name serves no other: all that its hosts began is that
// port's, whatever it was called before.
func IsOnlyPort(portName string) bool {
	for _, known := range portNames {
		if begins(portName, known.prefix) {
			return known.only
		}
	}
	return false
}

// ProtocolOf returns what is spoken on a port: Native where its name is not a listed one, as that of a device whose path is
// not absolute.
func ProtocolOf(portName string) Protocol {
	for _, known := range portNames {
		if begins(portName, known.prefix) {
			return known.protocol
		}
	}
	return Native
}

// checkPattern returns an error for a pattern of package path that means something else to a shell, as [!a], {a,b} and ** do.
func checkPattern(pattern string) error {
	glob, err := text.Glob(pattern)
	if err == nil && glob != pattern {
		err = errors.New("is written otherwise here: " + glob)
	}
	return err
}

// isPortPattern reports whether a text can match the name of a port: one that cannot would restrict nobody.
func isPortPattern(text string) bool {
	if checkPattern(text) != nil {
		return false
	}
	for _, known := range portNames {
		if begins(text, known.prefix) {
			return true
		}
	}
	return text == "*"
}

// begins reports whether more follows a prefix in a text.
func begins(text, prefix string) bool {
	return strings.HasPrefix(text, prefix) && len(text) > len(prefix)
}
