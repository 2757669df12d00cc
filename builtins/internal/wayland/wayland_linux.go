// Package wayland speaks the Wayland wire protocol as a client, in the terms of the protocol itself.
//
//	Dial ─► Conn: wl_display, wl_registry ─► Globals ─► Bind ─► Object
//	Object.Request ─► opcode and arguments, files by SCM_RIGHTS ─► the compositor
//	the compositor ─► Conn.Dispatch ─► Object.Handle(Event)
//
// An Interface lists the events of an interface in the order of their opcodes, as its protocol file does, so that every event
// is checked before a handler sees it. Requests are encoded from the Go types of their arguments: who sends one knows its
// opcode and its arguments from the same file.
//
// Not here: any interface but those of the core protocol that every client needs, buffers and surfaces.
package wayland

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Timeout bounds a round trip, and the time that a request waits for a compositor that does not read.
const Timeout = 2 * time.Second

// Interface describes an interface as far as this program speaks it.
type Interface struct {
	// Name is the interface's, such as wl_seat.
	Name string
	// Version is the highest one whose events are listed.
	Version uint32
	// Events are those that the compositor sends, in the order of their opcodes.
	Events []EventType
}

// EventType is one event of an interface.
type EventType struct {
	// Name is the event's, for errors.
	Name string
	// Args has a letter for each argument: i int, u uint, f fixed, s string, o object, n new_id, a array, h fd.
	Args string
	// New is the interface of the object that an argument new_id stands for.
	New *Interface
}

// Interfaces of the core protocol.
var (
	displayInterface = &Interface{Name: "wl_display", Version: 1, Events: []EventType{
		{Name: "error", Args: "ous"}, {Name: "delete_id", Args: "u"},
	}}
	registryInterface = &Interface{Name: "wl_registry", Version: 1, Events: []EventType{
		{Name: "global", Args: "usu"}, {Name: "global_remove", Args: "u"},
	}}

	// Callback is the interface of an object that sends one event, with a uint, when something is done.
	Callback = &Interface{Name: "wl_callback", Version: 1, Events: []EventType{{Name: "done", Args: "u"}}}
	// Seat is a group of input devices, to which a selection belongs.
	Seat = &Interface{Name: "wl_seat", Version: 2, Events: []EventType{
		{Name: "capabilities", Args: "u"}, {Name: "name", Args: "s"},
	}}
)

// Opcodes of requests of the core protocol.
const (
	displaySync        = 0
	displayGetRegistry = 1
	registryBind       = 0
)

// Opcodes of events of the core protocol.
const (
	displayError         = 0
	displayDeleteID      = 1
	registryGlobal       = 0
	registryGlobalRemove = 1
)

// Global is an object that the compositor offers to bind.
type Global struct {
	// Name is the number that stands for it in the registry.
	Name uint32
	// Interface and Version say what it is, and the highest version that the compositor speaks.
	Interface string
	Version   uint32
}

// Fixed is a signed number with 8 bits after the point.
type Fixed int32

// Float returns the number.
func (f Fixed) Float() float64 { return float64(f) / 256 }

// ProtocolError is the error event of the compositor, after which it ends the connection.
type ProtocolError struct {
	// Interface and Object say which object it is about; the interface of an object that is not known is empty.
	Interface string
	Object    uint32
	// Code is one of the interface's own errors, and Message the compositor's words.
	Code    uint32
	Message string
}

// Error returns what the compositor said.
func (e *ProtocolError) Error() string {
	return fmt.Sprintf("the compositor refused a request: %s@%d: error %d: %s", e.Interface, e.Object, e.Code, e.Message)
}

// SocketPath returns the path of the socket that a session's environment names: WAYLAND_DISPLAY, or wayland-0 where it is
// empty, below XDG_RUNTIME_DIR unless it is absolute.
func SocketPath(getenv func(string) string) (string, error) {
	display, dir := getenv("WAYLAND_DISPLAY"), getenv("XDG_RUNTIME_DIR")
	if display == "" {
		display = "wayland-0"
	}
	if filepath.IsAbs(display) {
		return display, nil
	}
	if !filepath.IsAbs(dir) {
		return "", fault.Unsupported("there is no XDG_RUNTIME_DIR in the environment of the session")
	}
	return filepath.Join(dir, display), nil
}
