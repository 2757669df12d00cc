package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// checkEnd is how long what a check started may keep its output open when the check itself has ended.
	checkEnd = 2 * time.Second
	// decideAfter is how long after the deadline the decision may still be sent: the agent then answers with the outcome.
	decideAfter = 10 * time.Second
	// decideEvery is the pause between two attempts to send it.
	decideEvery = 250 * time.Millisecond
)

// settle runs the check of a script that awaits its confirmation, and confirms it, or has it taken back. The reply then says
// what became of it. No connection is held meanwhile, so that the check may use one.
func (a *app) settle(ctx context.Context, path, check string, within time.Duration, reply *pb.RunScriptResponse) error {
	deadline := time.Now().Add(within)
	failed := a.check(ctx, path, check, reply.TransactionId, deadline)
	request := &pb.ConfirmRequest{TransactionId: reply.TransactionId, Action: pb.ConfirmAction_CONFIRM_ACTION_CONFIRM}
	if failed != nil {
		request.Action = pb.ConfirmAction_CONFIRM_ACTION_ROLLBACK
		a.note("the check failed: %v", failed)
	}
	answer, err := a.decide(context.WithoutCancel(ctx), request, deadline.Add(decideAfter))
	if err != nil {
		code := withExitCode(err).code
		if again(err) || errors.Is(err, context.DeadlineExceeded) {
			code = exitNoAnswer
		}
		const words = "what became of transaction %s is not known; it is taken back unless it was confirmed: %w"
		return &failure{code, fmt.Errorf(words, reply.TransactionId, err)}
	}
	reply.Status, reply.ConfirmUntil, reply.AfterCommit, reply.NotUndone = answer.Status, nil, answer.AfterCommit, answer.NotUndone
	reply.RollbackRan = answer.RollbackRan
	switch {
	case answer.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED && failed != nil:
		return &failure{exitFailed, fmt.Errorf("the check failed (%w), but somebody else has confirmed the changes", failed)}
	case answer.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED:
	case failed != nil:
		reply.Error = &pb.ScriptError{Kind: "cancelled", Message: "the check failed: " + failed.Error(), Hint: answer.Error.GetHint()}
	default:
		reply.Error = proto.CloneOf(answer.Error)
	}
	if answer.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		reply.Result = nil
	}
	if !a.quiet {
		a.printConfirmed(reply.TransactionId, answer)
	}
	return nil
}

// check runs a line of shell on this host, with its output on stderr: stdout is for the result of the script.
func (a *app) check(ctx context.Context, path, line, id string, deadline time.Time) error {
	late := errors.New("it did not end in time")
	ctx, cancel := context.WithDeadlineCause(ctx, deadline, late)
	defer cancel()
	c := exec.CommandContext(ctx, shell[0], append(shell[1:], line)...)
	c.Stdout, c.Stderr, c.WaitDelay = a.stderr, a.stderr, checkEnd
	c.Env = append(os.Environ(), "QUANTIX_SOCKET="+path, "QUANTIX_TRANSACTION="+id)
	ownGroup(c)
	err := c.Run()
	switch {
	case errors.Is(context.Cause(ctx), late):
		return late
	case ctx.Err() != nil:
		return errors.New("interrupted")
	}
	return err
}

// decide sends the agent what to do with a transaction. To send that twice does no harm, so a lost connection does none either.
func (a *app) decide(ctx context.Context, request *pb.ConfirmRequest, until time.Time) (reply *pb.ConfirmResponse, err error) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	for {
		err = a.with(ctx, requestTimeout, func(s *session) error {
			var err error
			reply, err = s.Confirm(s.ctx, request)
			return err
		})
		if err == nil || !again(err) && !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return reply, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(decideEvery):
		}
	}
}

// again reports whether an error is one of the connection, or of an agent that starts or ends.
func again(err error) bool {
	var f *failure
	return errors.As(err, &f) && f.code == exitNoAnswer || client.Later(err)
}
