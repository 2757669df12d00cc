package sandbox_test

import (
	"context"
	"errors"
	"io/fs"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func text(s string) *pb.LuaValue {
	return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(s)}}
}

func number(f float64) *pb.LuaValue {
	return &pb.LuaValue{Kind: &pb.LuaValue_Number{Number: f}}
}

// nested returns a value within depth tables.
func nested(depth int) *pb.LuaValue {
	v := number(1)
	for range depth {
		v = &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: &pb.LuaTable{Array: []*pb.LuaValue{v}}}}
	}
	return v
}

func boolean(b bool) *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_Boolean{Boolean: b}} }

func list(values ...*pb.LuaValue) *pb.LuaValue {
	return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: &pb.LuaTable{Array: values}}}
}

// named returns a table of names and values, given in turn.
func named(pairs ...any) *pb.LuaValue {
	t := &pb.LuaTable{}
	for i := 0; i < len(pairs); i += 2 {
		t.Fields = append(t.Fields, &pb.LuaField{Key: []byte(pairs[i].(string)), Value: pairs[i+1].(*pb.LuaValue)})
	}
	return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: t}}
}

// row returns a script row over messages, which is not called.
func row[In, Out proto.Message](name, usage string) *builtins.Op {
	f := func(context.Context, *builtins.Call, In) (out Out, err error) { return out, errors.ErrUnsupported }
	op := builtins.Op{Name: name, Usage: usage, Summary: "for the test", Handler: builtins.Handle(f)}
	return builtins.NewTable(builtins.Room{Name: op.Room(), Ops: []builtins.Op{op}}).Script(name)
}

var (
	writeRow    = row[*pb.WriteFileArgs, *pb.Changed]("file.write", "(path, content) changed")
	templateRow = row[*pb.TemplateArgs, *pb.Changed]("file.template", "(path, text, [vars]) changed")
	runRow      = row[*pb.RunArgs, *pb.RunResult]("exec.run", "(argv)")
	hostnameRow = row[*pb.HostnameArgs, *pb.HostnameResult]("host.hostname", "([new])")
	removeRow   = row[*pb.RemoveArgs, *pb.Changed]("file.remove", "([path]) changed")
	infoRow     = row[*pb.NoArgs, *pb.HostInfo]("host.info", "()")
)

func TestBind(t *testing.T) {
	none := &pb.LuaValue{}
	for _, c := range []struct {
		op   *builtins.Op
		args []*pb.LuaValue
		want proto.Message
	}{
		{writeRow, []*pb.LuaValue{text("/a"), text("\xff")}, &pb.WriteFileArgs{Path: "/a", Content: []byte("\xff")}},
		{writeRow, []*pb.LuaValue{text("/a"), number(42), named("mode", text("644"), "parents", boolean(true), "owner", number(1000)), none},
			&pb.WriteFileArgs{Path: "/a", Content: []byte("42"), Mode: "644", Parents: true, Owner: "1000"}},
		{templateRow, []*pb.LuaValue{text("/a"), text("x"), named("a", number(1732871234567890), "b", number(1<<60), "c", number(0.30000000000000004), "d", number(-1234567.5), "e", number(1e-7))},
			&pb.TemplateArgs{Path: "/a", Text: "x", Vars: map[string]string{
				"a": "1732871234567890", "b": "1152921504606846976", "c": "0.30000000000000004", "d": "-1234567.5", "e": "1e-07",
			}}},
		{templateRow, []*pb.LuaValue{text("/a"), text("{{n}}"), named("n", number(1.5), "s", text("x"))},
			&pb.TemplateArgs{Path: "/a", Text: "{{n}}", Vars: map[string]string{"n": "1.5", "s": "x"}}},
		{templateRow, []*pb.LuaValue{text("/a"), text("x"), none, named("mode", text("0600"))},
			&pb.TemplateArgs{Path: "/a", Text: "x", Mode: "0600"}},
		{runRow, []*pb.LuaValue{list(text("ls"), number(1)), named("env", named("A", text("b")), "check", boolean(false), "timeout", number(0.5), "max_output", number(1024))},
			&pb.RunArgs{Argv: []string{"ls", "1"}, Env: map[string]string{"A": "b"}, Check: proto.Bool(false), Timeout: 0.5, MaxOutput: 1024}},
		{hostnameRow, nil, &pb.HostnameArgs{}},
		{hostnameRow, []*pb.LuaValue{text("web")}, &pb.HostnameArgs{New: "web"}},
		{removeRow, []*pb.LuaValue{named("recursive", boolean(true))}, &pb.RemoveArgs{Recursive: true}},
		{infoRow, nil, &pb.NoArgs{}},
	} {
		got, err := sandbox.Bind(c.op, c.args)
		if err != nil || !proto.Equal(got, c.want) {
			t.Errorf("%s%v gives %v, %v, want %v", c.op.Name, c.args, prototext.Format(got), err, prototext.Format(c.want))
		}
	}
}

func TestBindRefuses(t *testing.T) {
	for _, c := range []struct {
		op   *builtins.Op
		args []*pb.LuaValue
		want string
	}{
		{writeRow, nil, "file.write: argument 1 (path) is missing: a string expected"},
		{writeRow, []*pb.LuaValue{text("/a")}, "file.write: argument 2 (content) is missing: a string expected"},
		{writeRow, []*pb.LuaValue{list(), text("")}, "file.write: argument 1 (path) must be a string, not a table"},
		{writeRow, []*pb.LuaValue{text("\xff"), text("")}, "file.write: argument 1 (path) is not UTF-8"},
		{writeRow, []*pb.LuaValue{text("/a"), text(""), named("mod", text("0644"))}, `file.write: unknown option "mod", did you mean "mode"?`},
		{writeRow, []*pb.LuaValue{text("/a"), text(""), named("zzzzzz", text("0644"))}, `file.write: unknown option "zzzzzz"`},
		{writeRow, []*pb.LuaValue{text("/a"), text(""), named("path", text("/b"))}, `file.write: unknown option "path"`},
		{writeRow, []*pb.LuaValue{text("/a"), text(""), named("parents", number(1))}, "file.write: option parents must be a boolean, not a number"},
		{writeRow, []*pb.LuaValue{text("/a"), text(""), named("mode", number(416))}, "file.write: option mode must be octal text, not a number"},
		{templateRow, []*pb.LuaValue{text("/a"), text(""), {}, named("mode", number(644))}, "file.template: option mode must be octal text, not a number"},
		{writeRow, []*pb.LuaValue{text("/a"), text(""), text("0644")}, "file.write: argument 3 must be a table of options, not a string"},
		{writeRow, []*pb.LuaValue{text("/a"), text(""), list(text("0644"))}, "file.write: options have names, and one is given by position"},
		{writeRow, []*pb.LuaValue{text("/a"), text(""), named(), text("")}, "file.write: takes 2 arguments and a table of options, not 4"},
		{infoRow, []*pb.LuaValue{text("x")}, "host.info: takes 0 arguments, not 1"},
		{runRow, []*pb.LuaValue{text("ls")}, "exec.run: argument 1 (argv) must be a list, not a string"},
		{runRow, []*pb.LuaValue{list(text("a"), boolean(true))}, "exec.run: argument 1 (argv): element 2 must be a string, not a boolean"},
		{runRow, []*pb.LuaValue{named("undo", list())}, `exec.run: argument 1 (argv) must be a list, and has the key "undo"; options go into a table of their own behind it`},
		{runRow, []*pb.LuaValue{list(), named("max_output", number(-1))}, "exec.run: option max_output must be a whole number from 0 to 9007199254740992, not -1"},
		{runRow, []*pb.LuaValue{list(), named("max_output", number(1.5))}, "exec.run: option max_output must be a whole number from 0 to 9007199254740992, not 1.5"},
		{runRow, []*pb.LuaValue{list(), named("env", list(text("A=b")))}, "exec.run: option env must be a table of names and values, not a list"},
	} {
		got, err := sandbox.Bind(c.op, c.args)
		if err == nil || err.Error() != c.want || !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s%v gives %v, error\n%v, want\n%v", c.op.Name, c.args, got, err, c.want)
		}
	}
}

func TestUnbind(t *testing.T) {
	for _, c := range []struct {
		op   *builtins.Op
		out  proto.Message
		want *pb.LuaValue
	}{
		{writeRow, &pb.Changed{Changed: true}, boolean(true)},
		{runRow, &pb.RunResult{Code: -1, Stdout: []byte("\xff")},
			named("code", number(-1), "stdout", text("\xff"), "stderr", text(""), "truncated", boolean(false))},
		{row[*pb.NoArgs, *pb.NoArgs]("a.b", "()"), &pb.NoArgs{}, &pb.LuaValue{}},
		{row[*pb.GlobArgs, *pb.Paths]("file.glob", "(pattern) paths"), &pb.Paths{},
			&pb.LuaValue{Kind: &pb.LuaValue_Table{Table: &pb.LuaTable{List: true}}}},
		{row[*pb.NoArgs, *pb.RunArgs]("a.b", "() check"), &pb.RunArgs{}, &pb.LuaValue{}},
		{row[*pb.NoArgs, *pb.RunArgs]("a.b", "() env"), &pb.RunArgs{Env: map[string]string{"b": "2", "a": "1"}},
			named("a", text("1"), "b", text("2"))},
	} {
		if got := sandbox.Unbind(c.op, c.out); !proto.Equal(got, c.want) {
			t.Errorf("%s gives %v, want %v", c.op.Name, got, c.want)
		}
	}
}
