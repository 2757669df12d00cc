// Package rawio holds the far end of a raw throughput measurement: the same three loops run in the guest on a port and in
// the host process on a unix socket, so that the two differ by the channel only.
//
// Not here: the near end and the clock (package vmtest).
package rawio

import (
	"fmt"
	"io"
)

// Block is the size of one write, and of the buffer of one read, in bytes.
const Block = 64 << 10

// Roles of the far end.
const (
	Echo   = "echo"   // sends back what comes
	Sink   = "sink"   // reads a round of bytes, then answers with one byte
	Source = "source" // waits for one byte, then writes a round of bytes
)

// Serve plays role until r ends or an error occurs, which it returns (io.EOF when the near end left between rounds).
// bytes is the length of a round of Sink and Source.
func Serve(role string, r io.Reader, w io.Writer, bytes int64) error {
	if role != Echo && bytes <= 0 {
		return fmt.Errorf("raw %s: a round of %d bytes", role, bytes)
	}
	buf := make([]byte, Block)
	switch role {
	case Echo:
		return echo(r, w, buf)
	case Sink:
		return sink(r, w, buf, bytes)
	case Source:
		return source(r, w, buf, bytes)
	}
	return fmt.Errorf("raw %q: unknown role", role)
}

func echo(r io.Reader, w io.Writer, buf []byte) error {
	for {
		n, err := r.Read(buf)
		if err != nil {
			return err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
	}
}

func sink(r io.Reader, w io.Writer, buf []byte, bytes int64) error {
	for {
		for left := bytes; left > 0; {
			n, err := r.Read(buf[:min(left, Block)])
			if err != nil {
				return err
			}
			left -= int64(n)
		}
		if _, err := w.Write(buf[:1]); err != nil {
			return err
		}
	}
}

func source(r io.Reader, w io.Writer, buf []byte, bytes int64) error {
	for {
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			return err
		}
		for left := bytes; left > 0; {
			n, err := w.Write(buf[:min(left, Block)])
			if err != nil {
				return err
			}
			left -= int64(n)
		}
	}
}
