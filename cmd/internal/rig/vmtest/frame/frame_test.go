package frame

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	var stream bytes.Buffer
	stream.WriteString("left over from an earlier session VMPROB")
	bodies := [][]byte{nil, []byte("VMPROBE1 inside a body"), bytes.Repeat([]byte{0, 255}, 1<<20)}
	for i, body := range bodies {
		if err := Write(&stream, Message{ID: uint64(i), Op: OpPut, Path: "/tmp/ü"}, body); err != nil {
			t.Fatal(err)
		}
	}
	r := bufio.NewReader(&stream)
	for i, body := range bodies {
		m, got, err := Read(r)
		if err != nil || m.ID != uint64(i) || m.Path != "/tmp/ü" || !bytes.Equal(got, body) {
			t.Fatalf("frame %d: got %+v with %d bytes, %v", i, m, len(got), err)
		}
	}
	if _, _, err := Read(r); err != io.EOF {
		t.Fatalf("after the last frame: %v, want EOF", err)
	}
}

func TestReadSkipsImpossibleLengths(t *testing.T) {
	var stream bytes.Buffer
	stream.WriteString(Mark + "\xff\xff\xff\xff\x00\x00\x00\x01")
	if err := Write(&stream, Message{ID: 9}, nil); err != nil {
		t.Fatal(err)
	}
	if m, _, err := Read(bufio.NewReader(&stream)); err != nil || m.ID != 9 {
		t.Fatalf("got %+v, %v", m, err)
	}
}

func TestReadTruncated(t *testing.T) {
	var whole bytes.Buffer
	if err := Write(&whole, Message{ID: 1}, []byte("body")); err != nil {
		t.Fatal(err)
	}
	cut := whole.Bytes()[:whole.Len()-1]
	if _, _, err := Read(bufio.NewReader(bytes.NewReader(cut))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("got %v", err)
	}
}

func TestWriteRefusesOversize(t *testing.T) {
	if err := Write(io.Discard, Message{ID: 1}, make([]byte, MaxBody+1)); err == nil {
		t.Fatal("an oversize body was written")
	}
	if err := Write(io.Discard, Message{ID: 1, Path: strings.Repeat("x", MaxHead)}, nil); err == nil {
		t.Fatal("an oversize head was written")
	}
}
