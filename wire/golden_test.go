package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

var update = flag.Bool("update", false, "write the golden frames anew")

// goldenFrame is one file of testdata/frames: a message as text, and its bytes in both framings as hex.
type goldenFrame struct {
	name, about   string
	message       *pb.AgentMessage // what must come out of the bytes
	unknown       []byte           // behind the message's own fields
	greeting      bool             // the plain frame is what a host of either framing reads, and the qtx1 frame is in it
	payload       []byte
	plain, framed []byte
}

// messages are those of which there are golden frames. Maps have one entry at most: more have no fixed order.
func messages() []goldenFrame {
	const id = "5f0c6a7e-9d2b-4c11-8a3e-0b1c2d3e4f50"
	in := func(payload proto.Message) *pb.AgentMessage {
		m := Wrap(id, payload)
		m.Timestamp = &timestamppb.Timestamp{Seconds: 1767225600, Nanos: 250e6}
		return m
	}
	from := func(payload proto.Message) *pb.AgentMessage {
		m := in(payload)
		m.Session = "8c1d0e5b7a924f60c3d2a1b0"
		return m
	}
	params, err := structpb.NewStruct(map[string]any{"interface": "eth0"})
	if err != nil {
		panic(err)
	}
	failed := from(&pb.FileStatResponse{Error: "file_stat /nowhere: file does not exist"})
	failed.ErrorDetail = &pb.ErrorDetail{Code: "not_found", Op: "file_stat", Object: "/nowhere", Message: "file_stat /nowhere: file does not exist"}
	busy := from(&pb.ExecuteResponse{ExitCode: -1, Error: "busy: 64 requests are in flight on this connection"})
	busy.ErrorDetail = &pb.ErrorDetail{Code: "busy", Message: "busy: 64 requests are in flight on this connection", Retryable: true, Details: map[string]string{"hint": "wait"}}
	unknownReply := from(nil)
	unknownReply.ErrorDetail = &pb.ErrorDetail{Code: "unsupported", Message: "unknown request"}
	limited := in(&pb.ExecuteRequest{Command: "uname", Args: []string{"-r"}, TimeoutSeconds: 5, WaitForExit: true})
	limited.TimeoutMs, limited.Session = 5000, "8c1d0e5b7a924f60c3d2a1b0"
	asking := in(&pb.PingRequest{Sequence: 3, Awaiting: []string{"the-id-of-another", "lost"}})
	asking.Session, asking.Host = limited.Session, 0x0123456789abcdef
	return []goldenFrame{
		{name: "ping", about: "A request that asks for nothing but a pong.", message: in(&pb.PingRequest{Sequence: 2})},
		{name: "pong", about: "Its reply, with the session of the agent.", message: from(&pb.PongResponse{Sequence: 2, Version: "0.2.0", UptimeSeconds: 7})},
		{name: "ping_awaiting", about: "From a named host that asks what became of two requests.", message: asking},
		{name: "pong_unknown", about: "Nothing more will come for one of them.", message: from(&pb.PongResponse{Sequence: 3, Version: "0.2.0", UptimeSeconds: 8, Unknown: []string{"lost"}})},
		{name: "agent_ready", about: "What an agent says first.", message: from(&pb.AgentReadyEvent{Version: "0.2.0", OsName: "Debian GNU/Linux", Architecture: "x86_64", Hostname: "web", IpAddresses: []string{"192.0.2.7"}, Capabilities: []string{"telemetry", "execute"}})},
		{name: "greeting", about: "What an agent says before the host's first frame: a plain frame, with the qtx1 frame of the same message as its end.", greeting: true, message: from(&pb.AgentReadyEvent{Version: "0.2.0", OsName: "Debian GNU/Linux", Hostname: "web"})},
		{name: "execute", about: "With a timeout of the whole call, and the echoed session.", message: limited},
		{name: "execute_reply", about: "Bytes that are not UTF-8 were escaped by the sender.", message: from(&pb.ExecuteResponse{Stdout: `6.1.0\xff` + "\n", DurationMs: 3})},
		{name: "file_write_first", about: "The first chunk of an upload, with its CRC-32C.", message: in(&pb.FileWriteRequest{Path: "/etc/motd", Data: []byte("123456789"), Mode: 0o644, Crc32C: new(sum([]byte("123456789")))})},
		{name: "file_write_last", about: "The last chunk: eof, and the SHA-256 of the whole file.", message: in(&pb.FileWriteRequest{Path: "/etc/motd", Data: []byte("\n"), Offset: 9, Eof: true, ChunkNumber: 1, Mode: 0o644, Sha256: fmt.Sprintf("%x", sha256.Sum256([]byte("123456789\n")))})},
		{name: "file_write_reply", about: "A chunk is acknowledged by its number.", message: from(&pb.FileWriteResponse{Success: true, BytesWritten: 9})},
		{name: "file_read", about: "A chunk of a file in a state that is known.", message: in(&pb.FileReadRequest{Path: "/etc/motd", Offset: 9, ChunkSize: 31000, Generation: "fe01-1a2b-6955b900.250000000-a"})},
		{name: "file_read_reply", about: "The last chunk, with its CRC-32C and the generation.", message: from(&pb.FileReadResponse{Success: true, Data: []byte("\n"), Offset: 9, TotalSize: 10, Eof: true, Mode: 0o644, Generation: "fe01-1a2b-6955b900.250000000-a", Crc32C: new(sum([]byte("\n")))})},
		{name: "stat_files", about: "What is at two paths, with digests.", message: in(&pb.StatFilesRequest{Paths: []string{"/srv/a", "/srv/b"}, Sha256: true})},
		{name: "stat_files_reply", about: "One description for each path: nothing is at the second.", message: from(&pb.StatFilesResponse{Success: true, Files: []*pb.FileStatus{{Kind: "file", Mode: 0o644, SizeBytes: 2, ModifiedAt: &timestamppb.Timestamp{Seconds: 1767225600}, Owner: "root", Group: "root"}, {Kind: "absent"}}})},
		{name: "write_files", about: "A directory, a file in it, and a further name of the file.", message: in(&pb.WriteFilesRequest{Entries: []*pb.TreeEntry{{Path: "/srv/d", Kind: "directory", Mode: new(uint32(0o755))}, {Path: "/srv/d/a", Kind: "file", Data: []byte("a\n"), Crc32C: new(sum([]byte("a\n")))}, {Path: "/srv/d/b", Kind: "link", Target: "/srv/d/a"}}})},
		{name: "write_files_reply", about: "The last one was not made.", message: from(&pb.WriteFilesResponse{Success: true, Results: []*pb.TreeResult{{}, {}, {Error: &pb.ErrorDetail{Code: "permission", Op: "write_files", Object: "/srv/d/b", Message: "write_files /srv/d/b: operation not permitted"}}}})},
		{name: "run_script", about: "A script under a key, with a parameter.", message: in(&pb.RunScriptRequest{Source: []byte("return params.interface\n"), Params: params, Key: "install-17", TimeoutSeconds: 60})},
		{name: "run_script_reply", about: "It committed, and was not run before.", message: from(&pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, Result: structpb.NewStringValue("eth0"), TransactionId: "20260101-000000-1"})},
		{name: "cancel", about: "Ends the request with a message id.", message: in(&pb.CancelRequest{MessageId: "the-id-of-another"})},
		{name: "error_detail", about: "A failure: the reply in its own type, and what errors.Is is made from.", message: failed},
		{name: "busy", about: "One request too many: at once, in the request's own reply type, and worth a second try.", message: busy},
		{name: "unknown_request", about: "A oneof arm that no agent of today knows (field 40, empty).", message: in(nil), unknown: []byte{0xc2, 0x02, 0}},
		{name: "unknown_reply", about: "The answer to it: the id and no payload.", message: unknownReply},
		{name: "only_an_id", about: "The smallest envelope there is.", message: &pb.AgentMessage{MessageId: "x"}},
	}
}

func sum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// golden returns the frames as they are made now.
func golden(t testing.TB) []goldenFrame {
	t.Helper()
	list := messages()
	for i := range list {
		g := &list[i]
		payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(g.message)
		if err != nil {
			t.Fatal(err)
		}
		g.payload = append(payload, g.unknown...)
		g.plain, g.framed = frameOf(Plain, g.payload), frameOf(QTX1, g.payload)
		if g.greeting {
			g.plain = slices.Concat(g.plain, []byte{0xf2, 0x0f}, protowire.AppendVarint(nil, uint64(len(g.framed))), g.framed)
			binary.BigEndian.PutUint32(g.plain, uint32(len(g.plain)-4))
		}
	}
	return list
}

// text writes a golden frame. The text of a message is not stable between versions of the library, so it is never compared.
func (g goldenFrame) text() string {
	message := "(no field)\n"
	if g.message != nil {
		message = strings.ReplaceAll(prototext.MarshalOptions{Multiline: true}.Format(g.message), ":  ", ": ")
	}
	if g.unknown != nil {
		message += fmt.Sprintf("# and the bytes % x\n", g.unknown)
	}
	return fmt.Sprintf("# %s\n\n-- message --\n%s\n-- plain --\n%s\n-- qtx1 --\n%s", g.about, message, dump(g.plain), dump(g.framed))
}

func dump(b []byte) string {
	var text strings.Builder
	for ; len(b) > 0; b = b[min(16, len(b)):] {
		fmt.Fprintf(&text, "% x\n", b[:min(16, len(b))])
	}
	return text.String()
}

// parseGolden reads a file of testdata/frames.
func parseGolden(t *testing.T, name string) (message, plain, framed []byte) {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, one := strings.Cut(string(content), "-- message --\n")
	text, rest, two := strings.Cut(rest, "-- plain --\n")
	first, second, three := strings.Cut(rest, "-- qtx1 --\n")
	if !one || !two || !three {
		t.Fatalf("%s: a part is missing", name)
	}
	plain, err = hex.DecodeString(strings.Join(strings.Fields(first), ""))
	if err == nil {
		framed, err = hex.DecodeString(strings.Join(strings.Fields(second), ""))
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return []byte(text), plain, framed
}

// The golden frames hold in both directions: the text makes the bytes, and the bytes the text's message, in both framings.
// Whoever writes another client may test it with the same files. -update writes them anew.
func TestGoldenFrames(t *testing.T) {
	dir := filepath.Join("testdata", "frames")
	known := map[string]bool{}
	for _, g := range golden(t) {
		file := filepath.Join(dir, g.name+".txt")
		known[file] = true
		if *update {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(g.text()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		t.Run(g.name, func(t *testing.T) { checkGolden(t, g, file) })
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !known[file] {
			t.Errorf("%s is no frame of this test", file)
		}
	}
}

func checkGolden(t *testing.T, g goldenFrame, file string) {
	text, plain, framed := parseGolden(t, file)
	written := &pb.AgentMessage{}
	if err := prototext.Unmarshal(text, written); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(written, g.message) {
		t.Errorf("the text says %v; want %v", written, g.message)
	}
	if g.greeting {
		checkGoldenGreeting(t, g.message, plain, framed)
	}
	for framing, want := range map[Framing][]byte{Plain: plain, QTX1: framed} {
		payload := g.payload
		if greeting := g.greeting && framing == Plain; greeting {
			payload = plain[4:]
		} else if g.unknown == nil { // nothing encodes a field that it does not know
			got, err := AppendMessage(nil, framing, written)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v: encoded to\n%s(%v); want\n%s", framing, dump(got), err, dump(want))
			}
		}
		var d Decoder
		d.Feed(want)
		frame, ok := d.Next()
		if !ok || frame.Framing != framing || !frame.Aligned || !bytes.Equal(frame.Payload, payload) {
			t.Fatalf("%v: found %x, %v", framing, frame.Payload, ok)
		}
		id, err := Inspect(frame.Payload)
		if err != nil || id != written.MessageId {
			t.Errorf("%v: %q, %v", framing, id, err)
		}
		if m, err := decode(frame.Payload); err != nil || !proto.Equal(m, written) {
			t.Errorf("%v: decoded to %v (%v)", framing, m, err)
		}
	}
}

// checkGoldenGreeting has the frame made again, and read by a host of each framing.
func checkGoldenGreeting(t *testing.T, m *pb.AgentMessage, plain, framed []byte) {
	envelope, err := marshal(m, newBuffer)
	if err != nil {
		t.Fatal(err)
	}
	if made, ok := appendGreeting(nil, envelope); !ok || !bytes.Equal(prependHeader(Plain, made), plain) || !bytes.HasSuffix(plain, framed) {
		t.Errorf("made\n%s(%v); want\n%s", dump(made), ok, dump(plain))
	}
	for framing, read := range hosts {
		if got, left, err := read(plain); len(got) != 1 || !proto.Equal(got[0], m) || left != 0 || err != nil {
			t.Errorf("a %v host reads %v (%d, %v)", framing, got, left, err)
		}
	}
}

// What an agent answers to the golden requests is what the golden replies say of it.
func TestGoldenRequestsAreServed(t *testing.T) {
	h, _ := guest(t, nil)
	for _, c := range []struct{ name, code string }{{"ping", ""}, {"execute", "stale"}, {"unknown_request", "unsupported"}, {"run_script", "unsupported"}} {
		_, plain, framed := parseGolden(t, filepath.Join("testdata", "frames", c.name+".txt"))
		for _, frame := range [][]byte{plain, framed} {
			h.write(frame)
			m, _ := h.next()
			if m.ErrorDetail.GetCode() != c.code || time.Since(m.Timestamp.AsTime()).Abs() > time.Minute {
				t.Errorf("%s: %v", c.name, m)
			}
		}
	}
}
