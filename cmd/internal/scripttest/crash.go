package scripttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// arg is the first argument that makes the program an agent that is going to be killed.
const arg = "script-trial"

// crash says where an agent dies: its process, and with it the runner, by SIGKILL.
type crash struct {
	place
	Request []byte
	Answers [][]byte
	Call    int  // of those that change something, from 1
	Before  bool // when the call is a command: before it runs, with its undo kept
}

// ChildMain is an agent that is going to be killed, where the program was started as one; then it gives true. main calls
// it before anything else.
func ChildMain() bool {
	if len(os.Args) < 2 || os.Args[1] != arg {
		return false
	}
	if err := die(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(survived)
	return true
}

// survived is the exit status of a run that never came to its point.
const survived = 3

// die runs a script until the point at which this process ends.
func die(in io.Reader) error {
	var c crash
	if err := json.NewDecoder(in).Decode(&c); err != nil {
		return err
	}
	request := &pb.RunScriptRequest{}
	err := proto.Unmarshal(c.Request, request)
	var answers []*pb.TrialCommandArgs
	for _, data := range c.Answers {
		answer := &pb.TrialCommandArgs{}
		err = errors.Join(err, proto.Unmarshal(data, answer))
		answers = append(answers, answer)
	}
	if err != nil {
		return err
	}
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	s, err := openSite(c.place, answers, pool)
	if err != nil {
		return err
	}
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		return err
	}
	s.point = func(call int, before bool) {
		if call == c.Call && before == c.Before {
			if self.Kill() == nil {
				select {} // nothing more is to happen
			}
		}
	}
	_, err = s.run(context.Background(), request)
	return errors.Join(err, s.Close())
}

// kill runs the script of a request in an agent of its own, which is killed at the point.
func kill(ctx context.Context, at place, request *pb.RunScriptRequest, list []*pb.TrialCommandArgs, call int, before bool) error {
	c := crash{place: at, Call: call, Before: before}
	var err error
	if c.Request, err = proto.Marshal(request); err != nil {
		return err
	}
	for _, answer := range list {
		data, err := proto.Marshal(answer)
		if err != nil {
			return err
		}
		c.Answers = append(c.Answers, data)
	}
	input, err := json.Marshal(c)
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := osexec.CommandContext(ctx, program, arg)
	var said bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), &said
	err = cmd.Run()
	var exit *osexec.ExitError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !errors.As(err, &exit):
		return fmt.Errorf("the agent was not killed: %v", err)
	case exit.ExitCode() == survived:
		return errors.New("the script took another way this time, and never came to the call")
	case exit.ExitCode() >= 0:
		return fmt.Errorf("the agent was not killed: %v: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}
