package port

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/Microsoft/go-winio"
)

// pipeRights lets administrators, the system and the agent's own user connect, and no others.
const pipeRights = "D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;OW)"

// pipeBuffer is how much each direction of a pipe holds, in bytes; with none a write waits for its reader.
const pipeBuffer = 64 << 10

const pipePrefix = `\\.\pipe\`

// pipeListener is a named pipe of this machine to which tools connect, several at a time.
type pipeListener struct {
	name     string
	l        net.Listener
	accepted chan net.Conn
	ended    chan struct{}
	work     sync.WaitGroup
	close    sync.Once
	sessions atomic.Int32
}

// listenPipe makes the pipe of a name, with or without \\.\pipe\ before it. Nobody of another machine can connect.
func listenPipe(name string) (Port, error) {
	short := strings.TrimPrefix(name, pipePrefix)
	if short == "" {
		return nil, fmt.Errorf("pipe:%s: no name", name)
	}
	l, err := winio.ListenPipe(pipePrefix+short, &winio.PipeConfig{
		SecurityDescriptor: pipeRights, InputBufferSize: pipeBuffer, OutputBufferSize: pipeBuffer,
	})
	if err != nil {
		return nil, fmt.Errorf("listen pipe:%s: %w", name, err)
	}
	p := &pipeListener{name: name, l: l, accepted: make(chan net.Conn), ended: make(chan struct{})}
	p.work.Go(p.accept)
	return p, nil
}

// accept takes connections for as long as the pipe is there: the library's own Accept knows no context.
func (p *pipeListener) accept() {
	defer close(p.accepted)
	for {
		conn, err := p.l.Accept()
		if err != nil {
			return
		}
		select {
		case p.accepted <- conn:
		case <-p.ended:
			conn.Close()
			return
		}
	}
}

func (p *pipeListener) Name() string { return "pipe:" + p.name }

func (p *pipeListener) Close() (err error) {
	p.close.Do(func() {
		close(p.ended)
		err = p.l.Close()
		p.work.Wait()
	})
	return err
}

func (p *pipeListener) Accept(ctx context.Context) (io.ReadWriteCloser, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case conn, ok := <-p.accepted:
			if !ok {
				return nil, ErrGone
			}
			if p.sessions.Load() >= maxSessions {
				conn.Close()
				continue
			}
			p.sessions.Add(1)
			ended := func() { p.sessions.Add(-1) }
			return &trackedSession{ReadWriteCloser: pipeSession{conn}, closed: make(chan struct{}), onClose: ended}, nil
		}
	}
}

// pipeSession is a connection whose end is io.EOF however it came.
type pipeSession struct{ net.Conn }

func (s pipeSession) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if errors.Is(err, winio.ErrFileClosed) {
		err = net.ErrClosed
	}
	return n, err
}
