package exec

import (
	"maps"
	"slices"

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
	lone, _ := in.(interface{ GetProgram() bool })
	if len(request.GetArgs()) > 0 || lone != nil && lone.GetProgram() {
		argv = append([]string{request.GetCommand()}, request.GetArgs()...)
	}
	env := request.GetEnvironment()
	return []builtins.Command{{Argv: argv, Paths: proc.SearchPaths(env), Env: slices.Sorted(maps.Keys(env)), Dir: request.GetWorkingDirectory()}}
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
	c := builtins.Command{Argv: argv, Paths: proc.SearchPaths(env), Env: slices.Sorted(maps.Keys(env)), Dir: dir}
	list := []builtins.Command{c}
	if len(undo) > 0 {
		c.Argv = undo
		list = append(list, c)
	}
	return list
}
