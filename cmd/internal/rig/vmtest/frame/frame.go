// Package frame is the language that the rig and its probe speak over their own port.
//
//	host (vmtest.VM)                         guest (probe)
//	Message{ID: 7, Op: "run", Argv: …}  ───►
//	                                    ◄───  Message{ID: 7, Code: 0, …} + output
//
// A frame is the mark, two big-endian lengths, a JSON head and a raw body:
//
//	"VMPROBE1"  head length (4)  body length (4)  head (JSON)  body
//
// The body carries file content and output, so that bulk data is never escaped: JSON strings cost seconds in an
// emulated guest. The mark lets either side find the next frame in a stream whose beginning it did not see, which
// happens whenever a saved machine is resumed or the guest reboots under a connected host.
//
// Not here: what an operation does. The probe knows that.
package frame

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// Mark begins every frame.
const Mark = "VMPROBE1"

// Bounds of one frame, in bytes. Both ends belong to the rig, so a longer frame is a programming error, or noise that
// happens to hold the mark.
const (
	MaxHead = 1 << 20
	MaxBody = 16 << 20
)

// Operations that the probe knows.
const (
	OpHello  = "hello"  // sets the guest's clock to Message.Now, and mixes Seed into its randomness; the reply carries BootID
	OpRun    = "run"    // runs Argv with Body as its standard input
	OpCancel = "cancel" // kills the command that was started as the message Target; has no reply
	OpPut    = "put"    // writes Body at Offset of Path+".vmtest-part"; Last makes it durable and renames it
	OpGet    = "get"    // reads up to MaxBody bytes at Offset of Path
)

// Message is the head of a frame. One type serves requests and replies: a field that an operation does not use is
// left out.
type Message struct {
	ID uint64 `json:"id"` // chosen by the host, repeated in the reply
	Op string `json:"op,omitempty"`

	Now    int64    `json:"now,omitempty"` // host clock, nanoseconds since 1970
	Seed   []byte   `json:"seed,omitempty"`
	BootID string   `json:"boot,omitempty"`   // /proc/sys/kernel/random/boot_id
	Target uint64   `json:"target,omitempty"` // ID of the command to cancel
	Argv   []string `json:"argv,omitempty"`
	Env    []string `json:"env,omitempty"` // NAME=value, added to the probe's own
	Dir    string   `json:"dir,omitempty"`
	Path   string   `json:"path,omitempty"`
	Mode   uint32   `json:"mode,omitempty"` // permission bits
	Offset int64    `json:"offset,omitempty"`
	Last   bool     `json:"last,omitempty"`

	Code   int    `json:"code,omitempty"`   // exit code, or 128 plus the signal
	Stdout int    `json:"stdout,omitempty"` // bytes of standard output at the front of the body; the rest is standard error
	Error  string `json:"error,omitempty"`  // the probe itself could not do it
}

// Write writes one frame in a single Write call.
func Write(w io.Writer, m Message, body []byte) error {
	head, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write frame %d: %w", m.ID, err)
	}
	if len(head) > MaxHead || len(body) > MaxBody {
		return fmt.Errorf("write frame %d: head %d and body %d bytes exceed %d and %d", m.ID, len(head), len(body), MaxHead, MaxBody)
	}
	buf := make([]byte, 0, len(Mark)+8+len(head)+len(body))
	buf = append(buf, Mark...)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(head)))
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(body)))
	buf = append(buf, head...)
	buf = append(buf, body...)
	_, err = w.Write(buf)
	return err
}

// Read returns the next frame, skipping whatever stands before its mark and frames that are no messages. Its errors are
// the reader's: io.EOF between frames, io.ErrUnexpectedEOF inside one.
func Read(r *bufio.Reader) (Message, []byte, error) {
	for {
		if err := seek(r); err != nil {
			return Message{}, nil, err
		}
		var lengths [8]byte
		if _, err := io.ReadFull(r, lengths[:]); err != nil {
			return Message{}, nil, inside(err)
		}
		headLen, bodyLen := binary.BigEndian.Uint32(lengths[:4]), binary.BigEndian.Uint32(lengths[4:])
		if headLen > MaxHead || bodyLen > MaxBody {
			continue
		}
		buf := make([]byte, headLen+bodyLen)
		if _, err := io.ReadFull(r, buf); err != nil {
			return Message{}, nil, inside(err)
		}
		var m Message
		if json.Unmarshal(buf[:headLen], &m) == nil {
			return m, buf[headLen:], nil
		}
	}
}

// seek consumes bytes up to and including the next mark.
func seek(r *bufio.Reader) error {
	for {
		window, err := r.Peek(len(Mark))
		if err != nil {
			return err
		}
		if string(window) == Mark {
			_, err = r.Discard(len(Mark))
			return err
		}
		skip := 1
		if i := bytes.IndexByte(window[1:], Mark[0]); i >= 0 {
			skip += i
		} else {
			skip = len(window)
		}
		if _, err := r.Discard(skip); err != nil {
			return err
		}
	}
}

func inside(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
