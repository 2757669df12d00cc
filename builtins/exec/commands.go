package exec

import (
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// executed is the command of a request of the host, be its output awaited or sent.
func executed(in proto.Message) []builtins.Command {
	request := in.(interface {
		GetCommand() string
		GetArgs() []string
		GetEnvironment() map[string]string
		GetWorkingDirectory() string
	})
	argv := shellLine(request.GetCommand())
	if len(request.GetArgs()) > 0 {
		argv = append([]string{request.GetCommand()}, request.GetArgs()...)
	}
	return []builtins.Command{{Argv: argv, Paths: proc.SearchPaths(request.GetEnvironment()), Dir: request.GetWorkingDirectory()}}
}

// ran are the commands of a call of exec.run: what it runs, and what a rollback would.
func ran(in proto.Message) []builtins.Command {
	args := in.(*pb.RunArgs)
	return both(args.Argv, args.Undo, args.Env, args.Cwd)
}

// lined are the commands of a call of exec.sh.
func lined(in proto.Message) []builtins.Command {
	args := in.(*pb.ShellArgs)
	return both(shellLine(args.Command), args.Undo, args.Env, args.Cwd)
}

func both(argv, undo []string, env map[string]string, dir string) []builtins.Command {
	paths := proc.SearchPaths(env)
	list := []builtins.Command{{Argv: argv, Paths: paths, Dir: dir}}
	if len(undo) > 0 {
		list = append(list, builtins.Command{Argv: undo, Paths: paths, Dir: dir})
	}
	return list
}
