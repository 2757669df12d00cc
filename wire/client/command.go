package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Command is what to run in the guest. Either Argv or Line is set.
type Command struct {
	// Name is what the guest lists a command under that is detached, or outlives the agent. Optional.
	Name        string
	Argv        []string // a program and its arguments; no shell touches them
	Line        string   // a line for the guest's shell
	Dir         string
	Env         map[string]string
	User, Group string
	Timeout     time.Duration // rounded up to whole seconds; 0, and what is longer: the agent's maximum
	MaxOutput   uint32        // bytes of each stream; 0: 1 MiB
	// MemoryLimit, in bytes, and ProcessorLimit are what the command and what it starts may use together; 0: anything.
	MemoryLimit    uint64
	ProcessorLimit time.Duration
}

// request returns the request of the contract for the command. There, a command without arguments is always a line for the
// shell, so a lone program is sent as one that makes the shell become exactly this program; that needs a POSIX shell in the
// guest.
func (cmd Command) request(wait bool) (*pb.ExecuteRequest, error) {
	request := &pb.ExecuteRequest{
		Command: cmd.Line, WorkingDirectory: text.EscapePath(cmd.Dir), Environment: cmd.Env, WaitForExit: wait,
		RunAsUser: cmd.User, RunAsGroup: cmd.Group, IncludeSupplementaryGroups: true, MaxOutputBytes: cmd.MaxOutput,
		TimeoutSeconds: Seconds(cmd.Timeout), MemoryLimitBytes: cmd.MemoryLimit,
		ProcessorLimitMs: uint64(max(cmd.ProcessorLimit, 0) / time.Millisecond),
	}
	switch {
	case (cmd.Line != "") == (len(cmd.Argv) > 0):
		return nil, fault.Invalid("a command is either a program or a line for the shell")
	case len(cmd.Argv) == 1:
		request.Command = "exec " + shellQuote(cmd.Argv[0])
	case len(cmd.Argv) > 1:
		request.Command, request.Args = cmd.Argv[0], cmd.Argv[1:]
	}
	return request, nil
}

// Seconds is a timeout as messages carry it: whole seconds, rounded up; 0 stays 0.
func Seconds(d time.Duration) uint32 {
	return uint32(min((max(d, 0)+time.Second-1)/time.Second, 1<<32-1))
}

// shellQuote makes one word of any text, for a POSIX shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Run runs a command and waits for its end. When ctx ends first the command is ended in the guest, and what it wrote until
// then is awaited for at most wait. A command that ran gives a reply and no error, whatever its exit code.
func (c *Client) Run(ctx context.Context, cmd Command, wait time.Duration) (*pb.ExecuteResponse, error) {
	request, err := cmd.request(true)
	if err != nil {
		return nil, err
	}
	reply, err := CallWait[*pb.ExecuteResponse](ctx, c, wait, NewID(), request)
	return reply, startError(reply, err)
}

// Start starts a command and leaves it to itself; its output is lost.
func (c *Client) Start(ctx context.Context, cmd Command) error {
	request, err := cmd.request(false)
	if err != nil {
		return err
	}
	reply, err := Call[*pb.ExecuteResponse](ctx, c, request)
	return startError(reply, err)
}

// startError returns err, or the error of a reply without error_detail that says that nothing was started.
func startError(reply *pb.ExecuteResponse, err error) error {
	if err == nil && reply.ExitCode == -1 && reply.Error != "" && !reply.TimedOut {
		return errors.New(reply.Error)
	}
	return err
}

// IsProgram reports whether an error is one of the program of a command, which does not exist or cannot be executed, and
// not of its user or directory.
func IsProgram(err error) bool {
	var remote *fault.Remote
	if !errors.As(err, &remote) {
		return false
	}
	if stage := remote.Detail.Details["stage"]; stage != "" {
		return stage == "program"
	}
	// Without that detail it follows the operation in the text.
	return strings.HasPrefix(strings.TrimPrefix(remote.Detail.Message, remote.Detail.Op+": "), "program ")
}

// recoveryTimeout is how long a link waits for an agent that takes back what an earlier one left of a script.
const recoveryTimeout = 10 * time.Minute

// RunScript runs a script exactly once, also where the connection is lost: the same request is sent again on the next one,
// under the same message id. The agent runs it if it never received it, waits for its end if it still runs, or returns the
// stored reply, which says so where the agent or the guest stopped in the middle. When ctx ends first the script is
// cancelled in the guest, and its reply is awaited for at most wait. How the script ended is in the reply; the error is
// that of a request which did not get as far as the agent's script manager.
func (l *Link) RunScript(ctx context.Context, request *pb.RunScriptRequest, wait time.Duration) (reply *pb.RunScriptResponse, err error) {
	id, first, began := NewID(), true, time.Now()
	err = l.retry(ctx, func(ctx context.Context, c *Client) (waits bool, err error) {
		reply, err = CallWait[*pb.RunScriptResponse](ctx, c, wait, id, request)
		busy := errors.Is(err, fault.ErrBusy) ||
			reply.GetStatus() == pb.ScriptStatus_SCRIPT_STATUS_REFUSED && reply.GetError().GetKind() == "busy"
		switch {
		case busy && !first: // it may have begun before the agent ended, and is being taken back
			why := reply.GetError().GetMessage()
			if err != nil {
				why = err.Error()
			}
			waits = time.Since(began) < recoveryTimeout
			reply, err = nil, &restartError{fmt.Errorf(
				"the connection was lost while the script was under way, and what became of it is not known yet: %s", why)}
		case err == nil:
		case reply != nil && reply.Status != pb.ScriptStatus_SCRIPT_STATUS_UNSPECIFIED && reply.Error != nil:
			err = nil
		case first && errors.Is(err, fault.ErrBusy):
			err = &localError{err} // the agent is not restarting: it has too much to do
		}
		first = false
		return waits, err
	})
	return reply, unwrapMarks(err)
}

// Transactions returns the stored transactions, newest first, at most limit of them; 0: all.
func (c *Client) Transactions(ctx context.Context, limit int) ([]*pb.TransactionInfo, error) {
	var all []*pb.TransactionInfo
	for token := ""; ; {
		request := &pb.TransactionsRequest{ContinuationToken: token}
		if limit > 0 {
			request.MaxEntries = uint32(limit - len(all))
		}
		reply, err := Call[*pb.TransactionsResponse](ctx, c, request)
		if err = replyError(reply.GetError(), err); err != nil {
			return nil, err
		}
		all = append(all, reply.Transactions...)
		if reply.ContinuationToken == "" || reply.ContinuationToken == token || limit > 0 && len(all) >= limit {
			return all, nil
		}
		token = reply.ContinuationToken
	}
}

// Transaction returns one stored transaction, with its reply.
func (c *Client) Transaction(ctx context.Context, id string) (*pb.TransactionInfo, error) {
	reply, err := Call[*pb.TransactionsResponse](ctx, c, &pb.TransactionsRequest{TransactionId: id})
	if err = replyError(reply.GetError(), err); err != nil {
		return nil, err
	}
	if len(reply.Transactions) != 1 {
		return nil, fmt.Errorf("transaction %s: the agent shows %d", id, len(reply.Transactions))
	}
	return reply.Transactions[0], nil
}

// CleanTransactions removes what is left of transactions that could not be rolled back completely. It returns which
// were cleaned, also with an error.
func (c *Client) CleanTransactions(ctx context.Context, request *pb.CleanTransactionsRequest) ([]string, error) {
	reply, err := Call[*pb.CleanTransactionsResponse](ctx, c, request)
	return reply.GetTransactionIds(), replyError(reply.GetError(), err)
}

// Confirm decides about a transaction that awaits its confirmation. The reply says what became of it, also with an error of its
// own: where it is another outcome than was asked for. err is that of a request which decided nothing.
func (c *Client) Confirm(ctx context.Context, request *pb.ConfirmRequest) (*pb.ConfirmResponse, error) {
	reply, err := Call[*pb.ConfirmResponse](ctx, c, request)
	if err == nil && reply.Status == pb.ScriptStatus_SCRIPT_STATUS_UNSPECIFIED {
		err = replyError(reply.Error, nil)
	}
	return reply, err
}

// Scripts returns the scripts that can be run by name.
func (c *Client) Scripts(ctx context.Context) ([]*pb.ScriptInfo, error) {
	reply, err := Call[*pb.ListScriptsResponse](ctx, c, &pb.ListScriptsRequest{})
	return reply.GetScripts(), replyError(reply.GetError(), err)
}

// Cancel stops what the request names; false: nothing of that name was running.
func (c *Client) Cancel(ctx context.Context, request *pb.CancelRequest) (bool, error) {
	reply, err := Call[*pb.CancelResponse](ctx, c, request)
	return reply.GetCancelled(), replyError(reply.GetError(), err)
}

// replyError returns err, or the ScriptError of a reply as an error.
func replyError(e *pb.ScriptError, err error) error {
	if err != nil || e == nil {
		return err
	}
	return &ScriptFailure{e}
}

// ScriptFailure is an error of the agent's script manager.
type ScriptFailure struct{ Detail *pb.ScriptError }

// Error returns its message.
func (e *ScriptFailure) Error() string { return e.Detail.GetMessage() }

// Unwrap returns the cause that its kind stands for, so that errors.Is holds.
func (e *ScriptFailure) Unwrap() error {
	code := e.Detail.GetKind()
	switch code {
	case "params":
		code = "invalid"
	case "policy", "sandbox":
		code = "refused"
	}
	return fault.FromDetail(&pb.ErrorDetail{Code: code, Message: e.Detail.GetMessage()})
}
