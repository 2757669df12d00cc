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

// Link is a way to an agent on which copies and scripts go on after the connection was lost.
//
//	attempt ──lost──► Dial ──► pull: from where it stopped, if the file's generation is still the same
//	   ▲                 │     push: from the first chunk that was not acknowledged, if the agent still has the others
//	   └─────────────────┘     script: the same request, under the same id
//
// A pull whose file has changed meanwhile begins anew where what was written can be taken back, and fails elsewhere. A file
// that is made of two states of another one is never left behind.
type Link struct {
	dial    func(context.Context) (*Client, error)
	mu      sync.Mutex
	current *Client
	own     bool // current was dialled here
}

// What a link waits for.
const (
	// linkPatience is how long it gets no further before it is given up. What only waits gets further while the agent answers,
	// but not over more than maxLives connections.
	linkPatience = 60 * time.Second
	maxLives     = 5
	// linkPing and linkSilence are how a connection that takes bytes and gives none is known.
	linkPing    = 5 * time.Second
	linkSilence = 30 * time.Second
	firstPause  = 50 * time.Millisecond
	longPause   = 2 * time.Second
	// maxAnew bounds how often one copy begins anew because the file changed or arrived damaged.
	maxAnew = 5
)

// NewLink makes a link over a connection, which stays the caller's unless it is lost: then the link closes it, since a port
// serves one host at a time. dial gives a new one that has shown a sign of life; it is called again until it does, and nil
// means that nothing is resumed.
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

// Do runs do on the connection, again on a new one when it was lost: do must be harmless to repeat.
func (l *Link) Do(ctx context.Context, do func(ctx context.Context, c *Client) error) error {
	return l.try(ctx, func(ctx context.Context, c *Client) (bool, error) { return false, do(ctx, c) })
}

// client gives the connection, a new one where there is none.
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

// lost ends a connection.
func (l *Link) lost(c *Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.Close()
	if l.current == c {
		l.current, l.own = nil, false
	}
}

// try runs do until it succeeds, or fails for a reason that is not the connection's, or gets no further for linkPatience.
// further says that an attempt got further than any before.
func (l *Link) try(ctx context.Context, do func(context.Context, *Client) (further bool, err error)) error {
	if l.dial == nil {
		_, err := do(ctx, l.current)
		return err
	}
	since, pause, lives := time.Now(), firstPause, 0
	for {
		further, dialled, lived, err := l.attempt(ctx, do)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if lived && lives < maxLives {
			further = true
			lives++
		}
		if further {
			since, pause = time.Now(), firstPause
		}
		if dialled && !connectionFailed(err) || time.Since(since) > linkPatience {
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
		pause = min(2*pause, longPause)
	}
}

// attempt is one attempt. dialled is false where no connection came about, lived true where the agent answered on it for a
// while.
func (l *Link) attempt(ctx context.Context, do func(context.Context, *Client) (bool, error)) (further, dialled, lived bool, err error) {
	c, err := l.client(ctx)
	if err != nil {
		return false, false, false, err
	}
	began := time.Now()
	watched, stop := c.Watch(ctx, linkPing, linkSilence)
	further, err = do(watched, c)
	stop()
	lived = time.Since(began) > longPause && !errors.Is(err, ErrNoAnswer)
	if Gone(err) || errors.Is(err, fault.ErrStale) {
		l.lost(c)
	}
	return further, true, lived, err
}

// connectionFailed says that an error is one of the way and not of the request, so that another attempt makes sense.
func connectionFailed(err error) bool {
	var own *localError
	var anew *anewError
	return !errors.As(err, &own) && (Gone(err) || errors.As(err, &anew) || errors.Is(err, fault.ErrUncertain) ||
		errors.Is(err, fault.ErrStale) || // a port outlives the agent: another one runs by now
		errors.Is(err, context.Canceled) || // by the agent, which stops
		errors.Is(err, fault.ErrBusy)) // the agent stops or has just started
}

// anewError is the reason why an attempt must be made again from the beginning.
type anewError struct{ err error }

func (e *anewError) Error() string { return e.err.Error() }
func (e *anewError) Unwrap() error { return e.err }

// localError is a failure at this end of a copy, which no other connection cures.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// ended gives the error of a copy without the marks that are for the link alone.
func ended(err error) error {
	var own *localError
	var anew *anewError
	switch {
	case errors.As(err, &own):
		return own.err
	case errors.As(err, &anew):
		return anew.err
	}
	return err
}

// landing is where a pulled file is written.
type landing struct {
	to  io.Writer
	n   int64
	sum hash.Hash // nil: nobody asks
}

func (w *landing) Write(p []byte) (int, error) {
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

// pull copies a file of the guest to a writer. anew takes back what was written; nil: that is not possible.
func (l *Link) pull(ctx context.Context, path string, to io.Writer, anew func() error, o PullOptions) (got Pulled, err error) {
	p := pulling{land: landing{to: to}, anew: anew, o: o, path: path}
	if o.SHA256 {
		if o.Offset != 0 {
			return got, fault.Invalid("a digest is that of a whole file, not of its end")
		}
		p.land.sum = sha256.New()
	}
	err = l.try(ctx, p.attempt)
	p.got.Size = p.land.n
	if err == nil && o.SHA256 {
		err = l.checkDigest(ctx, path, hex.EncodeToString(p.land.sum.Sum(nil)))
	}
	return p.got, ended(err)
}

// pulling is a pull that may take several attempts.
type pulling struct {
	land  landing
	anew  func() error
	o     PullOptions
	path  string
	got   Pulled
	begun int // how often it began anew
}

func (p *pulling) attempt(ctx context.Context, c *Client) (further bool, err error) {
	part := p.o
	part.Offset += p.land.n
	if p.land.n > 0 {
		if part.resume = p.got.last; part.resume == "" {
			return false, p.again(fault.Wrapf(fault.ErrChanged, "%s: the connection was lost, and this agent cannot tell whether the file is still the same", p.path))
		}
	}
	before := p.land.n
	now, err := c.pull(ctx, p.path, &p.land, part)
	if now.Generation != "" || before == 0 {
		p.got = now
	}
	if part.resume != "" && errors.Is(err, fault.ErrChanged) {
		return false, p.again(err)
	}
	return p.land.n > before, err
}

// again takes back what was written. Its error is marked as one to try again after, or is final.
func (p *pulling) again(why error) error {
	if p.begun++; p.anew == nil || p.begun > maxAnew {
		return why
	}
	if err := p.anew(); err != nil {
		return &localError{err}
	}
	if p.land.n = 0; p.land.sum != nil {
		p.land.sum.Reset()
	}
	return &anewError{why}
}

// digestScript gives the digest of a file as the guest has it.
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
		if there := reply.GetResult().GetStringValue(); !strings.EqualFold(there, sum) {
			return fault.Wrapf(fault.ErrChanged, "the file that came has the SHA-256 %s, and the guest's has %s by now", sum, there)
		}
		return nil
	})
}

// departure is where a pushed file is read.
type departure struct{ from io.Reader }

func (r departure) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if err != nil && err != io.EOF {
		err = &localError{err}
	}
	return n, err
}

// push copies a reader to a file of the guest. What cannot be read again is not sent again.
func (l *Link) push(ctx context.Context, path string, from io.Reader, o PushOptions) (sent int64, err error) {
	p := pushing{from: from, o: o, path: path}
	if seeker, can := from.(io.Seeker); can && l.dial != nil {
		if p.start, err = seeker.Seek(0, io.SeekCurrent); err == nil {
			p.seeker, p.upload = seeker, NewID()
		}
	}
	err = l.try(ctx, p.attempt)
	return p.sent, ended(err)
}

// pushing is a push that may take several attempts.
type pushing struct {
	from   io.Reader
	seeker io.Seeker // nil: it cannot be read again
	start  int64
	o      PushOptions
	path   string
	upload string // its name
	tried  bool
	sent   int64  // by the last attempt
	taken  uint32 // chunks that the guest has acknowledged
	begun  int    // how often it began anew over a good connection
}

func (p *pushing) attempt(ctx context.Context, c *Client) (further bool, err error) {
	part := portion{upload: p.upload, first: p.taken}
	if p.tried {
		if part.digest, err = p.rewind(); err != nil {
			return false, &localError{err}
		}
	}
	p.tried = true
	p.taken, p.sent, err = c.push(ctx, p.path, departure{p.from}, p.o, part)
	further = p.taken > part.first
	switch {
	case err == nil:
	case p.seeker == nil:
		err = &localError{err}
	case errors.Is(err, fault.ErrCorrupt) || errors.Is(err, fault.ErrChanged):
		// A chunk that was damaged, or an upload that the agent has dropped meanwhile, as one that was started anew has.
		if p.begun++; p.begun <= maxAnew {
			p.upload, p.taken = NewID(), 0
			err = &anewError{err}
		}
	}
	return further, err
}

// rewind goes back to the first chunk that was not acknowledged, and gives the digest of what is before it.
func (p *pushing) rewind() (digest hash.Hash, err error) {
	before := int64(p.taken) * pushChunk
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
