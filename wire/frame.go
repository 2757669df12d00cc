package wire

import (
	"encoding/binary"
	"errors"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// MaxFrame is the largest payload of a frame, in bytes; itself accepted. Hosts of both framings have the same bound.
const MaxFrame = 16 << 20

// SmallFrame bounds a frame whose size this project chooses, header included: a virtio-serial port takes 32,768 bytes
// in one write, whole or not at all, so such a frame is never cut by a host that leaves.
const SmallFrame = 32000

// Framing is how a frame begins.
type Framing int

// The framings. A plain frame is a 4-byte big-endian length and the payload. A QTX1 frame has the magic 51 54 58 01
// before the length. Auto reads both, and writes what the host wrote last, plain before that.
const (
	Auto Framing = iota
	Plain
	QTX1
)

// ParseFraming returns the framing that a configuration names: auto, plain or qtx1; empty is auto.
func ParseFraming(word string) (Framing, error) {
	switch word {
	case "", "auto":
		return Auto, nil
	case "plain":
		return Plain, nil
	case "qtx1":
		return QTX1, nil
	}
	return Auto, fault.Invalid("framing %q is none of auto, plain, qtx1", word)
}

// String returns the name of the framing, as in the configuration.
func (f Framing) String() string { return [...]string{"auto", "plain", "qtx1"}[f] }

const magic = "QTX\x01"

// appendHeader writes the header of a payload of n bytes.
func appendHeader(to []byte, f Framing, n int) []byte {
	if f == QTX1 {
		to = append(to, magic...)
	}
	return binary.BigEndian.AppendUint32(to, uint32(n))
}

// Frame is one payload as it was found in the stream. The payload is valid until the next call of the Decoder.
type Frame struct {
	Payload []byte
	Framing Framing
	// Aligned is true where the frame began at a frame boundary. Otherwise it was found by scanning, or
	// after one that was, and may be a part of something else's content.
	Aligned bool
}

// Decoder finds the frames in a byte stream that may begin or break off anywhere. It has no clock and does no I/O: Feed
// it what was read, take what Next returns, and call Silence after one.
//
// A header that is impossible starts a scan: for the magic, or for a length in front of what can begin an envelope.
// Frames found by scanning, and all after them, are not Aligned, until a silence makes the next byte a beginning again.
type Decoder struct {
	// Accept pins a framing; Auto takes both.
	Accept Framing

	buf       []byte
	head      int // buf[:head] is consumed
	scanning  bool
	unaligned bool // there was a scan since the last silence
	salvaging bool
	skipped   uint64 // bytes that belonged to no frame
	discard   int    // bytes that are still to come of a frame that Discard gave up
}

// Feed appends bytes of the stream.
func (d *Decoder) Feed(p []byte) {
	d.Add(copy(d.Space(len(p)), p))
}

// Space returns a buffer for at least n bytes of the stream, to be read into, and then Add. What Next returned before is
// not valid any more.
func (d *Decoder) Space(n int) []byte {
	if d.head == len(d.buf) {
		d.buf, d.head = d.buf[:0], 0
		if cap(d.buf) > 1<<20 {
			d.buf = nil
		}
	}
	if cap(d.buf)-len(d.buf) < n {
		rest, to := d.buf[d.head:], d.buf[:0]
		if cap(d.buf)-len(rest) < n {
			to = make([]byte, 0, max(2*len(rest), len(rest)+n))
		}
		d.buf, d.head = append(to, rest...), 0
	}
	return d.buf[len(d.buf):cap(d.buf)]
}

// Add appends the first n bytes of the buffer that Space returned last.
func (d *Decoder) Add(n int) { d.buf = d.buf[:len(d.buf)+n] }

// Detach returns the buffer that holds the frame which Next returned last; it is the caller's from then on. The decoder goes on
// in spare, or in a new buffer where spare is too small.
func (d *Decoder) Detach(spare []byte) (given []byte) {
	given, rest := d.buf, d.buf[d.head:]
	if cap(spare) < len(rest) {
		spare = make([]byte, 0, len(rest))
	}
	d.buf, d.head = append(spare[:0], rest...), 0
	return given
}

// Grow has the decoder go on in an empty buffer, with the bytes that it has, and returns the former one.
func (d *Decoder) Grow(buf []byte) (former []byte) {
	former = d.buf
	d.buf, d.head = append(buf[:0], d.buf[d.head:]...), 0
	return former
}

// Incomplete returns the frame that has begun and is not complete, after Next returned false: as much of its payload as there
// is, and its size with its header. The size is 0 where there is none or its header is not complete.
func (d *Decoder) Incomplete() (begun Frame, size int) {
	rest := d.buf[d.head:]
	framing, header, length, verdict := d.header(rest)
	if d.discard > 0 || verdict != possible {
		return Frame{}, 0
	}
	return Frame{Payload: rest[header:], Framing: framing, Aligned: !d.unaligned}, header + length
}

// Discard gives up the frame that Incomplete returned with this size: what has come of it, and what comes until its end or
// until a silence.
func (d *Decoder) Discard(size int) { d.discard = size }

// NotAFrame makes the decoder scan after the first byte of the frame that Incomplete returned, whose header is found to be
// none.
func (d *Decoder) NotAFrame() {
	d.scanning, d.unaligned = true, true
	d.drop(1)
}

// Pending reports whether there is the beginning of a frame that is not complete.
func (d *Decoder) Pending() bool { return d.head < len(d.buf) || d.discard > 0 }

// Rest returns the bytes after the frame that Next returned last. They are valid until the next call.
func (d *Decoder) Rest() []byte { return d.buf[d.head:] }

// Salvage discards the frame that is not complete, and returns the next of the frames that its bytes may hold, until false: a
// header that was none, or a host that disconnected within a frame, must not swallow what came after. None of them is Aligned,
// nor is anything that follows, until a Silence.
func (d *Decoder) Salvage() (Frame, bool) {
	if d.Pending() && !d.salvaging {
		d.scanning, d.unaligned, d.salvaging = true, true, true
		if d.discard == 0 {
			d.drop(1)
		}
		d.discard = 0
	}
	for d.Pending() {
		if frame, ok := d.Next(); ok {
			return frame, true
		}
		if d.Pending() { // what looks like a header promises more than there is
			d.scanning = true
			d.drop(1)
		}
	}
	d.salvaging = false
	return Frame{}, false
}

// Silence drops what is incomplete: the next byte begins a frame. It is due when a read had to wait for
// PayloadTimeout, or the peer is known to be a new one.
func (d *Decoder) Silence() {
	d.skipped += uint64(len(d.buf) - d.head)
	d.buf, d.head, d.discard = nil, 0, 0
	d.scanning, d.unaligned, d.salvaging = false, false, false
}

// Resync makes the decoder scan for the next header, since the frame that was returned last cannot be what its sender wrote.
func (d *Decoder) Resync() { d.scanning, d.unaligned = true, true }

// Skipped counts the bytes so far that belonged to no frame.
func (d *Decoder) Skipped() uint64 { return d.skipped }

// Next returns the next complete frame; false means that more bytes are needed.
func (d *Decoder) Next() (Frame, bool) {
	if d.discard > 0 {
		n := min(d.discard, len(d.buf)-d.head)
		d.head, d.discard = d.head+n, d.discard-n
	}
	for {
		rest := d.buf[d.head:]
		framing, header, length, verdict := d.header(rest)
		switch {
		case verdict == needMore:
			return Frame{}, false
		case verdict == orphan: // a magic where a length should be: the frame begins there
			d.drop(len(magic))
			continue
		case verdict == impossible:
			d.scanning, d.unaligned = true, true
			d.drop(1)
			continue
		case len(rest) < header+length:
			return Frame{}, false
		}
		d.scanning = false
		d.head += header + length
		return Frame{Payload: rest[header : header+length], Framing: framing, Aligned: !d.unaligned}, true
	}
}

func (d *Decoder) drop(n int) { d.head += n; d.skipped += uint64(n) }

type headerVerdict int

const (
	possible headerVerdict = iota
	needMore
	impossible
	orphan
)

// header parses the frame header at the beginning of b.
func (d *Decoder) header(b []byte) (f Framing, size, length int, v headerVerdict) {
	if len(b) == 0 {
		return 0, 0, 0, needMore
	}
	if b[0] == magic[0] && d.Accept != Plain {
		n := min(len(b), len(magic))
		if string(b[:n]) != magic[:n] {
			return 0, 0, 0, impossible
		}
		if len(b) < len(magic)+4 {
			return 0, 0, 0, needMore
		}
		if string(b[4:8]) == magic {
			return 0, 0, 0, orphan
		}
		return checkLength(QTX1, 8, b[4:8])
	}
	if b[0] > 1 || d.Accept == QTX1 {
		return 0, 0, 0, impossible
	}
	if len(b) < 4 {
		return 0, 0, 0, needMore
	}
	f, size, length, v = checkLength(Plain, 4, b[:4])
	if v == possible && d.scanning {
		v = beginsEnvelope(b[4:], length)
	}
	return f, size, length, v
}

func checkLength(f Framing, size int, field []byte) (Framing, int, int, headerVerdict) {
	length := binary.BigEndian.Uint32(field)
	if length == 0 || length > MaxFrame {
		return 0, 0, 0, impossible
	}
	return f, size, int(length), possible
}

// beginsEnvelope reports whether b can begin an envelope of n bytes: field 1, a text of printable characters. A length is
// any four bytes with a small first one, so a scan wants to see more before it waits for that many bytes.
func beginsEnvelope(b []byte, n int) headerVerdict {
	if len(b) == 0 {
		return needMore
	}
	if b[0] != 0x0a || n < 3 {
		return impossible
	}
	if len(b) == 1 {
		return needMore
	}
	id := int(b[1])
	if id == 0 || id > 127 || id+2 > n {
		return impossible
	}
	for _, c := range b[2:min(len(b), id+2)] {
		if c < ' ' || c > '~' {
			return impossible
		}
	}
	if len(b) < min(n, id+2) {
		return needMore
	}
	return possible
}

// errNotDecoded marks a payload that is no envelope.
var errNotDecoded = errors.New("payload is no AgentMessage")
