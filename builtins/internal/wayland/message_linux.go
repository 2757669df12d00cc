package wayland

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	headerSize = 8 // object id, and length and opcode in one word
	// maxRequest is how long a message may be that every compositor takes: libwayland's buffer before 1.23.
	maxRequest = 4096
	// firstServerID begins the ids that the compositor gives to objects.
	firstServerID = 0xff000000
)

// order is that of the machine, as the protocol says. All machines of this program have the low byte first.
var order = binary.LittleEndian

// encode makes a request of an object. The files are what its arguments of type *os.File are, in their order.
func encode(object uint32, opcode uint16, args []any) (message []byte, files []*os.File, err error) {
	message = make([]byte, headerSize, 64)
	for _, arg := range args {
		switch arg := arg.(type) {
		case int32:
			message = order.AppendUint32(message, uint32(arg))
		case uint32:
			message = order.AppendUint32(message, arg)
		case Fixed:
			message = order.AppendUint32(message, uint32(arg))
		case string:
			if strings.IndexByte(arg, 0) >= 0 {
				return nil, nil, fault.Invalid("a text with a zero byte cannot be sent to a compositor")
			}
			message = appendBytes(message, append([]byte(arg), 0))
		case []byte:
			message = appendBytes(message, arg)
		case *Object:
			id := uint32(0)
			if arg != nil {
				id = arg.id
			}
			message = order.AppendUint32(message, id)
		case *os.File:
			files = append(files, arg)
		default:
			panic(fmt.Sprintf("wayland: an argument of type %T", arg))
		}
	}
	if len(message) > maxRequest {
		return nil, nil, fault.Invalid("a request of %d bytes is more than the %d that a compositor takes", len(message), maxRequest)
	}
	order.PutUint32(message, object)
	order.PutUint32(message[4:], uint32(len(message))<<16|uint32(opcode))
	return message, files, nil
}

// appendBytes adds a length, the content, and zeros up to the next word.
func appendBytes(message, content []byte) []byte {
	message = order.AppendUint32(message, uint32(len(content)))
	message = append(message, content...)
	for len(message)%4 != 0 {
		message = append(message, 0)
	}
	return message
}

// Event is an event of an object. Its arguments are got by their position; another type than the event's is a programmer's
// mistake.
type Event struct {
	// Object is whose event it is.
	Object *Object
	// Opcode is its place in Interface.Events.
	Opcode uint16
	args   []any
}

// Int returns an argument of type int.
func (e *Event) Int(i int) int32 { return e.args[i].(int32) }

// Uint returns an argument of type uint.
func (e *Event) Uint(i int) uint32 { return e.args[i].(uint32) }

// Fixed returns an argument of type fixed.
func (e *Event) Fixed(i int) Fixed { return e.args[i].(Fixed) }

// String returns an argument of type string; one that is null is empty.
func (e *Event) String(i int) string { return e.args[i].(string) }

// Array returns an argument of type array, which is the caller's.
func (e *Event) Array(i int) []byte { return e.args[i].([]byte) }

// Of returns an argument of type object or new_id; nil: null, or an object that was destroyed.
func (e *Event) Of(i int) *Object { return e.args[i].(*Object) }

// File returns an argument of type fd, in non-blocking mode, which the caller must close. One that no handler asks for is
// closed when it returns.
func (e *Event) File(i int) *os.File {
	file := e.args[i].(*os.File)
	e.args[i] = (*os.File)(nil)
	return file
}

// closeFiles closes what no handler took.
func (e *Event) closeFiles() {
	for _, arg := range e.args {
		if file, ok := arg.(*os.File); ok && file != nil {
			file.Close()
		}
	}
}

// decoder reads the arguments of one event.
type decoder struct {
	data []byte
	bad  bool
}

func (d *decoder) word() uint32 {
	if len(d.data) < 4 {
		d.bad = true
		return 0
	}
	v := order.Uint32(d.data)
	d.data = d.data[4:]
	return v
}

// bytes returns a copy of what a length stands before.
func (d *decoder) bytes() []byte {
	n := uint64(d.word())
	if padded := (n + 3) &^ 3; padded > uint64(len(d.data)) {
		d.bad = true
		return nil
	} else {
		content := append([]byte(nil), d.data[:n]...)
		d.data = d.data[padded:]
		return content
	}
}

// text returns a string, of which the last byte is zero and belongs to its length; null is empty.
func (d *decoder) text() string {
	content := d.bytes()
	if len(content) == 0 {
		return ""
	}
	if content[len(content)-1] != 0 {
		d.bad = true
	}
	return string(content[:len(content)-1])
}
