package builtins

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// handler is a function that nobody calls.
func handler[In, Out proto.Message]() Handler {
	return Handle(func(context.Context, *Call, In) (out Out, err error) { return out, errors.ErrUnsupported })
}

func script[In, Out proto.Message](name, usage string) Op {
	return Op{Name: name, Usage: usage, Summary: "for the test", Handler: handler[In, Out]()}
}

func native[In, Out proto.Message](name string) Op {
	return Op{Name: name, Summary: "for the test", Handler: handler[In, Out]()}
}

func with(op Op, access func(proto.Message) Access) Op {
	op.Access = access
	return op
}

func TestUsage(t *testing.T) {
	for usage, want := range map[string]*Signature{
		"()":                         {},
		"( )":                        {},
		"() changes":                 {Result: "changes"},
		"(path) changed":             {Args: []string{"path"}, Result: "changed"},
		"(path, content)  changed ":  {Args: []string{"path", "content"}, Result: "changed"},
		"([new])":                    {Args: []string{"new"}, Optional: 1},
		"(path, [owner], [group]) x": {Args: []string{"path", "owner", "group"}, Optional: 2, Result: "x"},
		"(path,[owner],[group])":     {Args: []string{"path", "owner", "group"}, Optional: 2},
		"":                           nil,
		"path":                       nil,
		"path) changed":              nil,
		"(path":                      nil,
		"path changed":               nil,
		"(path,) changed":            nil,
		"(, path)":                   nil,
		"(,)":                        nil,
		"([])":                       nil,
		"([new)":                     nil,
		"(new])":                     nil,
		"([[new]])":                  nil,
		"((path))":                   nil,
		"([owner, group])":           nil,
		"(path [owner])":             nil,
		"([owner], path)":            nil,
		"(path, path)":               nil,
		"(path, [path])":             nil,
	} {
		got, err := parseUsage(usage)
		if (err != nil) != (want == nil) || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v, want %+v", usage, got, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("%q", usage)) {
			t.Errorf("the error about %q does not show it: %v", usage, err)
		}
	}
}

func TestWhatARowSaysOfARequest(t *testing.T) {
	op := script[*pb.HostnameArgs, *pb.HostnameResult]("host.hostname", "([new])")
	op.Mutates, op.Readonly = true, Of(func(in *pb.HostnameArgs) bool { return in.New == "" })
	if op.Changes(&pb.HostnameArgs{}) || !op.Changes(&pb.HostnameArgs{New: "x"}) {
		t.Error("a request that only looks counts as a change, or the other way round")
	}
	op.Mutates = false
	if op.Changes(&pb.HostnameArgs{New: "x"}) {
		t.Error("a row that does not mutate changes something")
	}
	if access := op.AccessOf(&pb.HostnameArgs{New: "x"}); !reflect.DeepEqual(access, Access{}) {
		t.Error(access)
	}
	file := native[*pb.FileStatRequest, *pb.FileStatResponse]("file_stat")
	if op.Room() != "host" || file.Room() != "" {
		t.Error(op.Room(), file.Room())
	}
}

func TestAnErrorTravelsInTheReply(t *testing.T) {
	cause := &fault.Error{Op: "a.b", Object: "/x", Err: fs.ErrNotExist}
	stat := native[*pb.FileStatRequest, *pb.FileStatResponse]("file_stat")
	if got := stat.ErrorReply(cause).(*pb.FileStatResponse); got.Error != cause.Error() {
		t.Errorf("%v", got)
	}
	run := native[*pb.RunScriptRequest, *pb.RunScriptResponse]("run_script")
	if got := run.ErrorReply(cause).(*pb.RunScriptResponse).Error; got.GetKind() != "not_found" || got.Message != cause.Error() {
		t.Errorf("%v", got)
	}
	none := script[*pb.PathArgs, *pb.Changed]("a.b", "(path)") // whose reply has no room for an error
	if got := none.ErrorReply(cause); !proto.Equal(got, &pb.Changed{}) {
		t.Errorf("%v", got)
	}
	stat.OnError = func(err error) proto.Message { return &pb.FileStatResponse{Error: "own: " + err.Error()} }
	if got := stat.ErrorReply(cause).(*pb.FileStatResponse); got.Error != "own: "+cause.Error() {
		t.Errorf("%v", got)
	}
	if stat.Out.ProtoReflect().IsValid() {
		t.Error("the prototype was written to")
	}
}

func TestKindsOfErrors(t *testing.T) {
	for kind, causes := range map[string][]error{
		"not_found": {fs.ErrNotExist}, "unsupported": {errors.ErrUnsupported}, "busy": {fault.ErrBusy},
		"timeout": {context.DeadlineExceeded}, "cancelled": {context.Canceled, ErrStopping},
		"params": {fs.ErrInvalid, fault.ErrTooLarge}, "policy": {fault.ErrRefused, ErrPolicy, fs.ErrPermission, fault.ErrStale},
		"internal": {errors.New("x"), fault.ErrInternal, fs.ErrExist},
	} {
		for _, cause := range causes {
			if got := ErrorKind(fmt.Errorf("with words: %w", cause)); got != kind {
				t.Errorf("%v is %s, want %s", cause, got, kind)
			}
		}
	}
}

func TestAnErrorOfAHandlerHasNoReply(t *testing.T) {
	h := Handle(func(context.Context, *Call, *pb.PathArgs) (*pb.Changed, error) { return nil, fs.ErrExist })
	if out, err := h.Call(t.Context(), &Call{}, &pb.PathArgs{}); out != nil || err != fs.ErrExist {
		t.Error(out, err)
	}
}
