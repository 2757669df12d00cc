package wire

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestInspectPassesWhatIsHonest(t *testing.T) {
	params, err := structpb.NewStruct(map[string]any{"list": []any{1, "a", map[string]any{"b": true}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, payload := range []proto.Message{
		nil,
		&pb.PingRequest{Sequence: 1},
		&pb.FileWriteRequest{Path: "/x", Data: make([]byte, 15<<20)},
		&pb.RunScriptRequest{Params: params, Source: []byte("return 1")},
		&pb.InterfaceInfo{},
	} {
		if _, ok := payload.(*pb.InterfaceInfo); ok {
			continue
		}
		id, err := Inspect(envelopeOf(t, "the-id", payload))
		if err != nil || id != "the-id" {
			t.Errorf("%T: %q, %v", payload, id, err)
		}
	}
}

// Bytes that would become a mountain of values are refused before anything is decoded, with the id.
func TestInspectRefusesBombs(t *testing.T) {
	list := func(n int) *structpb.Struct {
		values := make([]*structpb.Value, n)
		for i := range values {
			values[i] = &structpb.Value{}
		}
		return &structpb.Struct{Fields: map[string]*structpb.Value{"l": structpb.NewListValue(&structpb.ListValue{Values: values})}}
	}
	deep := structpb.NewNullValue()
	for range 200 {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	for name, payload := range map[string]proto.Message{
		"elements":     &pb.RunScriptRequest{Params: list(MaxElements + 1)},
		"strings":      &pb.ExecuteRequest{Args: make([]string, MaxElements+1)},
		"depth":        &pb.RunScriptRequest{Params: &structpb.Struct{Fields: map[string]*structpb.Value{"d": deep}}},
		"bytes":        &pb.ExecuteRequest{Command: strings.Repeat("x", MaxRequest)},
		"empty values": &pb.RunScriptRequest{Params: list(1 << 20)},
	} {
		id, err := Inspect(envelopeOf(t, "the-id", payload))
		if !errors.Is(err, fault.ErrTooLarge) || id != "the-id" {
			t.Errorf("%s: %q, %v", name, id, err)
		}
	}
	packed := protowire.AppendTag(nil, 1, protowire.BytesType)
	packed = protowire.AppendString(packed, "the-id")
	var inner []byte
	inner = protowire.AppendTag(inner, 8, protowire.BytesType) // telemetry.interfaces
	var list32 []byte
	list32 = protowire.AppendTag(list32, 200, protowire.BytesType) // prefixes, packed
	list32 = protowire.AppendBytes(list32, make([]byte, 100_000))
	inner = protowire.AppendBytes(inner, list32)
	packed = protowire.AppendTag(packed, 100, protowire.BytesType)
	packed = protowire.AppendBytes(packed, inner)
	if _, err := Inspect(packed); !errors.Is(err, fault.ErrTooLarge) {
		t.Errorf("packed: %v", err)
	}
}

// What decodes is encoded to the same message again, and what Inspect passes does not break the decoder.
func FuzzInspect(f *testing.F) {
	f.Add(envelopeOf(f, "id", &pb.ExecuteRequest{Command: "x", Environment: map[string]string{"A": "b"}}))
	f.Add([]byte{0x0a, 0x80, 0x80})
	f.Fuzz(func(t *testing.T, payload []byte) {
		if _, err := Inspect(payload); err != nil {
			return
		}
		m, err := decode(payload)
		if err != nil {
			return
		}
		again, err := marshal(m, newBuffer)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decode(again[headerSpace:])
		if err != nil || !proto.Equal(m, back) {
			t.Fatalf("%v became %v (%v)", m, back, err)
		}
	})
}

func TestTextThatIsNotUTF8IsEscaped(t *testing.T) {
	m := Wrap("id", &pb.ExecuteResponse{Stdout: "a\xffb", Stderr: "é"})
	encoded, err := marshal(m, newBuffer)
	if err != nil {
		t.Fatal(err)
	}
	back, err := decode(encoded[headerSpace:])
	if err != nil || back.GetExecuteResponse().Stdout != `a\xffb` || back.GetExecuteResponse().Stderr != "é" {
		t.Errorf("%v, %v", back, err)
	}
	m = Wrap("id", &pb.GetCapabilitiesResponse{Features: map[string]string{"k\xfe": "v\xfd"}, Capabilities: []string{"\xfc"}})
	encoded, err = marshal(m, newBuffer)
	if err != nil {
		t.Fatal(err)
	}
	if back, err = decode(encoded[headerSpace:]); err != nil || back.GetGetCapabilitiesResponse().Features[`k\xfe`] != `v\xfd` {
		t.Errorf("%v, %v", back, err)
	}
}

// Every request of the envelope has a reply of the paired number, and nothing else has one.
func TestReplyTypesFollowTheNumbers(t *testing.T) {
	requests := 0
	for i := range payloadOneof().Fields().Len() {
		field := payloadOneof().Fields().Get(i)
		request := (&pb.AgentMessage{}).ProtoReflect().NewField(field).Message().Interface()
		reply := ReplyType(request)
		isRequest := field.Number() >= 10 && field.Number() < 50 || field.Number() >= 200 && field.Number() < 220
		if (reply != nil) != isRequest {
			t.Errorf("%s: reply %v", field.Name(), reply)
			continue
		}
		if !isRequest {
			continue
		}
		requests++
		wrapped := Wrap("id", reply.New().Interface())
		got := wrapped.ProtoReflect().WhichOneof(payloadOneof()).Number()
		if got != field.Number()+40 && got != field.Number()+20 {
			t.Errorf("%s (%d) is answered by %d", field.Name(), field.Number(), got)
		}
	}
	if requests != 25+18 {
		t.Errorf("%d requests", requests)
	}
}

// Where an envelope has its id twice, the last one counts, as it does for every decoder of protobuf: the reply must go to
// the request that is served.
func TestTheLastIdCounts(t *testing.T) {
	payload := append(envelopeOf(t, "first", nil), envelopeOf(t, "last", &pb.PingRequest{})...)
	id, err := Inspect(payload)
	m, decodeErr := decode(payload)
	if err != nil || decodeErr != nil || id != "last" || m.MessageId != id {
		t.Errorf("%q, %q, %v, %v", id, m.GetMessageId(), err, decodeErr)
	}
	h, _ := guest(t, nil)
	h.write(frameOf(Plain, payload))
	if m, _ := h.next(); m.MessageId != "last" || m.GetPong() == nil {
		t.Error(m)
	}
}
