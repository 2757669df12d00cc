package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Link is a connection to an agent that is dialled again when it was lost, so that transfers, scripts and waits for jobs go on.
//
//	attempt ──lost──► Dial ──► pull: from where it stopped, if the file's generation is still the same
//	   ▲                 │     push: from the first chunk that was not acknowledged, if the agent still has the others
//	   └─────────────────┘     script: the same request, under the same id
//
// A pull whose file has changed meanwhile is restarted where what was written can be discarded, and fails elsewhere. The result is
// never a mixture of two states of the file.
type Link struct {
	dial    func(context.Context) (*Client, error)
	mu      sync.Mutex
	current *Client
	own     bool // current was dialled by the link
}

// Timeouts and limits of a link.
const (
	// retryTimeout is how long a link goes on without progress. Waiting for an agent that answers counts as progress, but not on more
	// than maxLiveConnections connections.
	retryTimeout       = 60 * time.Second
	maxLiveConnections = 5
	// watchInterval and watchTimeout are those of Client.Watch, which finds a connection that takes bytes and returns none.
	watchInterval = 5 * time.Second
	watchTimeout  = 30 * time.Second
	minBackoff    = 50 * time.Millisecond
	maxBackoff    = 2 * time.Second
	// maxRestarts bounds how often one transfer is restarted because the file changed or arrived damaged.
	maxRestarts = 5
)

// NewLink returns a link over a connection, which stays the caller's unless it is lost: then the link closes it, since a port serves
// one host at a time. dial returns a new connection on which the agent has answered (Client.Alive); it is called again until it
// succeeds. A nil dial means that nothing is resumed.
func NewLink(c *Client, dial func(context.Context) (*Client, error)) *Link {
	return &Link{current: c, dial: dial}
}

// Close ends the connections that were dialled by the link.
func (l *Link) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own {
		l.current.Close()
	}
	l.current, l.own = nil, false
}

// Do calls do with the connection, and again with a new one when that was lost: do must be idempotent.
func (l *Link) Do(ctx context.Context, do func(ctx context.Context, c *Client) error) error {
	return l.retry(ctx, func(ctx context.Context, c *Client) (bool, error) { return false, do(ctx, c) })
}

// client returns the current connection, or dials a new one.
func (l *Link) client(ctx context.Context) (*Client, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil {
		return l.current, nil
	}
	c, err := l.dial(ctx)
	if err == nil {
		l.current, l.own = c, true
	}
	return c, err
}

// closeLost closes a connection that was lost.
func (l *Link) closeLost(c *Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.Close()
	if l.current == c {
		l.current, l.own = nil, false
	}
}

// retry calls do until it succeeds, fails for a reason that is not the connection's, or makes no progress for retryTimeout.
// progressed reports that an attempt got further than all before.
func (l *Link) retry(ctx context.Context, do func(context.Context, *Client) (progressed bool, err error)) error {
	if l.dial == nil {
		_, err := do(ctx, l.current)
		return err
	}
	since, pause, alive := time.Now(), minBackoff, 0
	for {
		progressed, dialled, answered, err := l.attempt(ctx, do)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if answered && alive < maxLiveConnections {
			progressed = true
			alive++
		}
		if progressed {
			since, pause = time.Now(), minBackoff
		}
		if dialled && !isRetryable(err) || time.Since(since) > retryTimeout {
			return err
		}
		if errors.Is(err, fault.ErrUncertain) { // the agent trusts what comes after a silence
			pause = wire.PayloadTimeout + 100*time.Millisecond
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause = min(2*pause, maxBackoff)
	}
}

// attempt is one attempt. dialled is false where no connection could be made; answered is true where the agent answered on it for
// longer than maxBackoff.
func (l *Link) attempt(ctx context.Context, do func(context.Context, *Client) (bool, error)) (progressed, dialled, answered bool, err error) {
	c, err := l.client(ctx)
	if err != nil {
		return false, false, false, err
	}
	began := time.Now()
	watched, stop := c.Watch(ctx, watchInterval, watchTimeout)
	progressed, err = do(watched, c)
	stop()
	answered = time.Since(began) > maxBackoff && !errors.Is(err, ErrNoAnswer)
	if Gone(err) || errors.Is(err, fault.ErrStale) {
		l.closeLost(c)
	}
	return progressed, true, answered, err
}

// isRetryable reports whether an error is one of the connection and not of the request, so that another attempt makes sense.
func isRetryable(err error) bool {
	var local *localError
	var restart *restartError
	return !errors.As(err, &local) && (Gone(err) || errors.As(err, &restart) || errors.Is(err, fault.ErrUncertain) ||
		errors.Is(err, fault.ErrStale) || // a port outlives the agent: another one runs by now
		errors.Is(err, context.Canceled) || // by the agent, which stops
		errors.Is(err, fault.ErrBusy)) // the agent stops or has just started
}

// restartError marks an error after which the transfer is restarted from its beginning.
type restartError struct{ err error }

func (e *restartError) Error() string { return e.err.Error() }
func (e *restartError) Unwrap() error { return e.err }

// localError marks a failure at this end of a transfer, which another connection does not cure.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// unwrapMarks returns an error without the marks localError and restartError, which are for the link alone.
func unwrapMarks(err error) error {
	var local *localError
	var restart *restartError
	switch {
	case errors.As(err, &local):
		return local.err
	case errors.As(err, &restart):
		return restart.err
	}
	return err
}

// countingWriter writes a pulled file, and counts and sums its bytes.
type countingWriter struct {
	to  io.Writer
	n   int64
	sum hash.Hash // nil: not needed
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	w.n += int64(n)
	if w.sum != nil {
		w.sum.Write(p[:n])
	}
	if err != nil {
		err = &localError{err}
	}
	return n, err
}

// pullRetrying copies a file of the guest to a writer. reset discards what was written; nil: that is not possible.
func (l *Link) pullRetrying(ctx context.Context, path string, to io.Writer, reset func() error, o PullOptions) (got PullResult, err error) {
	p := pullState{dst: countingWriter{to: to}, reset: reset, o: o, path: path}
	if o.SHA256 {
		if o.Offset != 0 {
			return got, fault.Invalid("a digest is that of a whole file, not of its end")
		}
		p.dst.sum = sha256.New()
	}
	err = l.retry(ctx, p.attempt)
	p.got.Size = p.dst.n
	if err == nil && o.SHA256 {
		err = l.checkDigest(ctx, path, hex.EncodeToString(p.dst.sum.Sum(nil)))
	}
	return p.got, unwrapMarks(err)
}

// pullState is a pull that may take several attempts.
type pullState struct {
	dst      countingWriter
	reset    func() error
	o        PullOptions
	path     string
	got      PullResult
	restarts int // so far
	attempts int
}

func (p *pullState) attempt(ctx context.Context, c *Client) (progressed bool, err error) {
	part := p.o
	part.Offset += p.dst.n
	part.chunk = max(int64(pullChunk)>>min(p.attempts, 8), portChunk) // what is under way when a connection is lost comes again
	p.attempts++
	if p.dst.n > 0 {
		if part.resume = p.got.last; part.resume == "" {
			return false, p.restart(fault.Wrapf(fault.ErrChanged, "%s: the connection was lost, and this agent cannot tell whether the file is still the same", p.path))
		}
	}
	before := p.dst.n
	now, err := c.pull(ctx, p.path, &p.dst, part)
	if now.Generation != "" || before == 0 {
		p.got = now
	}
	if part.resume != "" && errors.Is(err, fault.ErrChanged) {
		return false, p.restart(err)
	}
	return p.dst.n > before, err
}

// restart discards what was written. It returns a restartError, or a final error where there can be no restart.
func (p *pullState) restart(why error) error {
	if p.restarts++; p.reset == nil || p.restarts > maxRestarts {
		return why
	}
	if err := p.reset(); err != nil {
		return &localError{err}
	}
	if p.dst.n = 0; p.dst.sum != nil {
		p.dst.sum.Reset()
	}
	return &restartError{why}
}

// digestScript returns the digest of a file as the guest has it.
const digestScript = `return script {
  name = "digest", readonly = true, params = { path = { type = "string", required = true } },
  run = function(p) return file.sha256(p.path) end,
}`

// checkDigest compares what arrived with what the guest has.
func (l *Link) checkDigest(ctx context.Context, path, sum string) error {
	params, err := structpb.NewStruct(map[string]any{"path": path})
	if err != nil {
		return err
	}
	return l.Do(ctx, func(ctx context.Context, c *Client) error {
		reply, err := Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(digestScript), Params: params})
		if err := replyError(reply.GetError(), err); err != nil {
			return err
		}
		if guest := reply.GetResult().GetStringValue(); !strings.EqualFold(guest, sum) {
			return fault.Wrapf(fault.ErrChanged, "the received file has the SHA-256 %s, the guest's file %s", sum, guest)
		}
		return nil
	})
}

// sourceReader reads a file to push, and marks its errors as local.
type sourceReader struct{ from io.Reader }

func (r sourceReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if err != nil && err != io.EOF {
		err = &localError{err}
	}
	return n, err
}

// pushRetrying copies a reader to a file of the guest. It is resumed only where the reader is an io.Seeker.
func (l *Link) pushRetrying(ctx context.Context, path string, from io.Reader, o PushOptions) (sent int64, err error) {
	p := pushState{from: from, o: o, path: path}
	if seeker, can := from.(io.Seeker); can && l.dial != nil {
		if p.start, err = seeker.Seek(0, io.SeekCurrent); err == nil {
			p.seeker, p.upload = seeker, NewID()
		}
	}
	if p.seeker == nil {
		var stop func()
		p.from, stop = untilDone(ctx, from)
		defer stop()
	}
	err = l.retry(ctx, p.attempt)
	return p.sent, unwrapMarks(err)
}

// untilDone returns a reader that ends with ctx, also while from waits, as a pipe does whose writer is silent. Behind stop at most
// one read of from is still waited for, by nobody.
func untilDone(ctx context.Context, from io.Reader) (to io.Reader, stop func()) {
	r, w := io.Pipe()
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{from}, make([]byte, pushChunk))
		_ = w.CloseWithError(err)
	}()
	end := context.AfterFunc(ctx, func() { _ = w.CloseWithError(context.Cause(ctx)) })
	return r, func() { end(); _ = r.Close() }
}

// pushState is a push that may take several attempts.
type pushState struct {
	from     io.Reader
	seeker   io.Seeker // nil: it cannot be read again
	start    int64
	o        PushOptions
	path     string
	upload   string // its name
	tried    bool
	sent     int64  // by the last attempt
	acked    uint32 // chunks that the guest has acknowledged
	restarts int    // restarts that no lost connection caused
}

func (p *pushState) attempt(ctx context.Context, c *Client) (progressed bool, err error) {
	part := uploadPart{upload: p.upload, first: p.acked}
	if p.tried {
		if part.digest, err = p.rewind(); err != nil {
			return false, &localError{err}
		}
	}
	p.tried = true
	p.acked, p.sent, err = c.push(ctx, p.path, sourceReader{p.from}, p.o, part)
	progressed = p.acked > part.first
	switch {
	case err == nil:
	case p.seeker == nil:
		err = &localError{err}
	case errors.Is(err, fault.ErrCorrupt) || errors.Is(err, fault.ErrChanged):
		// A chunk that was damaged, or an upload that the agent has dropped, as it does when it restarts.
		if p.restarts++; p.restarts <= maxRestarts {
			p.upload, p.acked = NewID(), 0
			err = &restartError{err}
		}
	}
	return progressed, err
}

// rewind goes back to the first chunk that was not acknowledged, and returns the digest of what is before it.
func (p *pushState) rewind() (digest hash.Hash, err error) {
	before := int64(p.acked) * pushChunk
	if p.o.SHA256 {
		digest = sha256.New()
		if _, err = p.seeker.Seek(p.start, io.SeekStart); err == nil {
			_, err = io.CopyN(digest, p.from, before)
		}
		return digest, err
	}
	_, err = p.seeker.Seek(p.start+before, io.SeekStart)
	return nil, err
}
