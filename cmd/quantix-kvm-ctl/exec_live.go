package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/term"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// execLive runs a command whose output is shown as it comes.
func (a *app) execLive(s *session, command client.Command, stdin, tty bool) error {
	if !supportsStreaming(s) {
		if stdin || tty {
			return fault.Unsupported("the agent in the guest runs commands only without --stdin and --tty")
		}
		return a.exec(s, command, false)
	}
	options := client.StreamOptions{Stdin: stdin, Outlive: !stdin && !tty}
	if tty {
		rows, cols := a.windowSize()
		options.Terminal = &pb.Terminal{Term: os.Getenv("TERM"), Rows: rows, Cols: cols}
	}
	background, stop := context.WithCancel(s.ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	restore := func() {}
	defer func() { restore() }() // also in a panic
	var running *client.Stream
	var left atomic.Bool // by the way out of a terminal
	if stdin && tty && a.verbose {
		a.note("a tilde and a dot at the beginning of a line (~.) leave the command, which ends")
	}
	end, err := s.RunStream(s.ctx, command, options, cancelWait, func(stream *client.Stream) {
		running = stream
		if tty {
			work.Go(func() { a.followWindow(background, stream) })
		}
		if stdin {
			var from io.Reader = a.stdin
			if tty {
				restore = rawTerminal(a.stdin)
				from = &escapeReader{from: a.stdin, leave: func() { left.Store(true); s.Client.Close() }}
			}
			go forwardInput(background, from, stream) // not waited for: only a key ends a read of a terminal
		}
	}, a.writeOutput)
	restore()
	if err != nil && left.Load() {
		return &failure{exitInterrupted, errors.New("left by ~.; the command ends with the connection")}
	}
	if err != nil && running != nil && client.Gone(err) {
		end, err = a.followOutlived(s, running, err)
	}
	if err != nil {
		return notStarted(s.causeOf(err))
	}
	if end.GetError() != "" {
		a.note("exec: %s", end.Error)
	}
	return exitWith(int(end.GetExitCode()), end.GetTimedOut())
}

// followOutlived goes on with a command whose agent has ended, as by the command itself; lost is the error of its stream, which
// is returned where the command has not outlived the agent.
func (a *app) followOutlived(s *session, stream *client.Stream, lost error) (*pb.ExecEnd, error) {
	job, stdout, stderr := stream.Job()
	if job == "" {
		return nil, lost
	}
	link := a.newLink(s, true)
	defer link.Close()
	end, missing, err := link.Follow(s.ctx, job, stdout, stderr, cancelWait, a.writeOutput)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, lost
	case err != nil:
		return nil, fmt.Errorf("%w; the command is job %s", err, job)
	case end == nil:
		return nil, &failure{exitExecFailed, fmt.Errorf("job %s is lost: nobody knows how it ended", job)}
	}
	if missing > 0 {
		a.note("exec: %s of the output are missing: the guest keeps the last 2 MiB of each stream", size(missing))
	}
	return end, nil
}

// supportsStreaming reports whether the agent announces exec_stream. It is asked first, since agents other than this project's
// may not answer a request that they do not know.
func supportsStreaming(s *session) bool {
	reply, err := client.Call[*pb.GetCapabilitiesResponse](s.ctx, s.Client, &pb.GetCapabilitiesRequest{})
	return err == nil && slices.Contains(reply.GetCapabilities(), "exec_stream")
}

// writeOutput writes a piece of output.
func (a *app) writeOutput(out client.Output) error {
	if len(out.Stdout) > 0 {
		_, err := a.stdout.Write(out.Stdout)
		return err
	}
	_, err := a.stderr.Write(out.Stderr)
	return err
}

// forwardInput copies input to the command, until that or the input ends. A command that reads no more is no error.
func forwardInput(ctx context.Context, from io.Reader, stream *client.Stream) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := stream.Write(ctx, buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			stream.CloseInput(ctx) // a command that has ended needs none
			return
		}
	}
}

// windowSize returns the size of this host's terminal; 0 where there is none.
func (a *app) windowSize() (rows, cols uint32) {
	for _, f := range []*os.File{a.stdout.file, a.stdin, a.stderr} {
		if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 0 && height > 0 {
			return uint32(height), uint32(width)
		}
	}
	return 0, 0
}

// followWindow sends the guest the new sizes of the terminal.
func (a *app) followWindow(ctx context.Context, stream *client.Stream) {
	resized, stop := windowChanges()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-resized:
		}
		if rows, cols := a.windowSize(); rows > 0 {
			if err := stream.Resize(ctx, rows, cols); err != nil && !errors.Is(err, context.Canceled) {
				return // the command has ended
			}
		}
	}
}
