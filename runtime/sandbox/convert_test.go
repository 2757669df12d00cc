package sandbox_test

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestParamsComeBackAsTheyWere(t *testing.T) {
	const document = `{"a":[],"b":{},"c":[1,2.5,null,"x",true,[{"d":"é"}]],"e":-9007199254740992}`
	in := &structpb.Struct{}
	if err := in.UnmarshalJSON([]byte(document)); err != nil {
		t.Fatal(err)
	}
	table, err := sandbox.FromStruct(in)
	if err != nil {
		t.Fatal(err)
	}
	out, err := sandbox.ToStruct(table)
	if err != nil || !proto.Equal(in, out) {
		t.Errorf("%s comes back as %v, %v", document, out, err)
	}
}

func TestResultsThatNobodyCouldRead(t *testing.T) {
	for _, c := range []struct {
		value *pb.LuaValue
		want  string
	}{
		{named("user", named("name", text("\xff"))), "result.user.name is not UTF-8 text"},
		{named("\xff", text("")), `result has the key "\xff"`},
		{list(number(1), number(math.NaN())), "result[2] is NaN"},
		{number(math.Inf(-1)), "result is -Inf"},
		{number(1<<53 + 2), "result is a whole number beyond 2^53"},
		{nested(33), "nested deeper than 32"},
		{&pb.LuaValue{Kind: &pb.LuaValue_Table{Table: &pb.LuaTable{
			Array: []*pb.LuaValue{number(1)}, Fields: []*pb.LuaField{{Key: []byte("x"), Value: number(2)}},
		}}}, "result is a list and has names (x)"},
	} {
		value, err := sandbox.ToValue(c.value)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("gives %v, error %v, want %q", value, err, c.want)
		}
	}
	for want, value := range map[string]*pb.LuaValue{
		"null": {}, "{}": named(), "9007199254740992": number(1 << 53), "1e+300": number(1e300),
		"[]": {Kind: &pb.LuaValue_Table{Table: &pb.LuaTable{List: true}}},
	} {
		got, err := sandbox.ToValue(value)
		if err != nil {
			t.Errorf("%v: %v", value, err)
			continue
		}
		if b, err := json.Marshal(got.AsInterface()); err != nil || string(b) != want {
			t.Errorf("%v gives %s, %v, want %s", value, b, err, want)
		}
	}
	if _, err := sandbox.ToValue(nested(32)); err != nil {
		t.Error(err)
	}
}

func TestParamsThatAreTooDeep(t *testing.T) {
	value := structpb.NewNumberValue(1)
	for range 40 {
		value = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{value}})
	}
	_, err := sandbox.FromStruct(&structpb.Struct{Fields: map[string]*structpb.Value{"x": value}})
	if err == nil || fault.Code(err) != "invalid" {
		t.Errorf("error is %v", err)
	}
}

// A whole number beyond 2^53 is most likely another one than the host wrote.
func TestParamsThatAreNotExact(t *testing.T) {
	for _, f := range []float64{1<<53 + 2, -1 << 60, 9223372036854775807, 89148000000060671234} {
		list := structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewNumberValue(f)}})
		_, err := sandbox.FromStruct(&structpb.Struct{Fields: map[string]*structpb.Value{"x": list}})
		if err == nil || fault.Code(err) != "invalid" {
			t.Errorf("%v: error is %v", f, err)
		}
	}
	for _, f := range []float64{1 << 53, -1 << 53, 1e21, 1e300, 0.1} {
		if _, err := sandbox.FromStruct(&structpb.Struct{Fields: map[string]*structpb.Value{"x": structpb.NewNumberValue(f)}}); err != nil {
			t.Errorf("%v: %v", f, err)
		}
	}
}

func TestErrorReply(t *testing.T) {
	plain := &fault.Error{Op: "file.write", Object: "/etc/motd", Err: syscall.EROFS, Hint: "remount it"}
	for _, c := range []struct {
		err  error
		want *pb.RunnerError
	}{
		{plain, &pb.RunnerError{Op: "file.write", Object: "/etc/motd", Code: "read_only", Message: "read-only file system", Hint: "remount it"}},
		{errors.Join(plain), &pb.RunnerError{Op: "file.write", Object: "/etc/motd", Code: "read_only",
			Message: "file.write /etc/motd: read-only file system", Hint: "remount it"}},
		{errors.New("x\xff"), &pb.RunnerError{Code: "internal", Message: `x\xff`}},
	} {
		if got := sandbox.ErrorReply(c.err).GetError(); !proto.Equal(got, c.want) {
			t.Errorf("%v gives %v, want %v", c.err, got, c.want)
		}
	}
}
