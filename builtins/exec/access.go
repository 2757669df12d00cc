package exec

import (
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// nativeAccess is the command of a request of the host, be its output awaited or sent.
func nativeAccess(in proto.Message) builtins.Access {
	request := in.(interface {
		GetEnvironment() map[string]string
		GetWorkingDirectory() string
	})
	return builtins.Access{Commands: []builtins.Command{
		guest.CommandAccess(nativeArgv(in), request.GetEnvironment(), request.GetWorkingDirectory()),
	}}
}

// nativeArgv is the program that a request of the host runs, and its arguments: a line of shell unless it says otherwise.
func nativeArgv(in proto.Message) []string {
	request := in.(interface {
		GetCommand() string
		GetArgs() []string
	})
	program, _ := in.(interface{ GetProgram() bool })
	if len(request.GetArgs()) > 0 || program != nil && program.GetProgram() {
		return append([]string{request.GetCommand()}, request.GetArgs()...)
	}
	return shellLine(request.GetCommand())
}

// runAccess is what a call of exec.run runs, what a rollback would, and what it changes.
func runAccess(in *pb.RunArgs) builtins.Access { return scriptAccess(in.Argv, in) }

// shellAccess is the same of a call of exec.sh.
func shellAccess(in *pb.ShellArgs) builtins.Access { return scriptAccess(shellLine(in.Command), in) }

func scriptAccess(argv []string, in interface {
	GetUndo() []string
	GetUndoIf() []string
	GetTouches() []string
	GetEnv() map[string]string
	GetCwd() string
}) builtins.Access {
	a := builtins.Access{Writes: in.GetTouches(), Commands: []builtins.Command{guest.CommandAccess(argv, in.GetEnv(), in.GetCwd())}}
	for _, argv := range [][]string{in.GetUndo(), in.GetUndoIf()} {
		if len(argv) > 0 {
			a.Commands = append(a.Commands, guest.CommandAccess(argv, in.GetEnv(), in.GetCwd()))
		}
	}
	return a
}
