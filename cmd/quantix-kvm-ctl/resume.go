package main

import (
	"context"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
)

// noResumeUsage is the usage of --no-resume.
const noResumeUsage = "fail when the connection is lost, rather than connect again and go on"

// newLink returns a link over the session that connects again where resume is true; the caller closes it.
func (a *app) newLink(s *session, resume bool) *client.Link {
	if !resume {
		return client.NewLink(s.Client, nil)
	}
	noted := false
	return client.NewLink(s.Client, func(ctx context.Context) (*client.Client, error) {
		if !noted {
			a.note("the connection is lost; connecting again")
			noted = true
		}
		framing, err := wire.ParseFraming(a.framing)
		if err != nil {
			return nil, err
		}
		dialing, stop := context.WithTimeout(ctx, connectTimeout)
		defer stop()
		c, err := client.Dial(dialing, s.path, client.Options{Framing: framing, Event: s.event, Recovering: a.noteRecovery})
		if err != nil {
			return nil, err
		}
		s.closeAfter(c)
		if err := c.Alive(ctx); err != nil {
			c.Close()
			return nil, err
		}
		noted = false
		return c, nil
	})
}

// isDir is client.IsDir over a link.
func isDir(ctx context.Context, l *client.Link, path string) (dir bool, err error) {
	err = l.Do(ctx, func(ctx context.Context, c *client.Client) (err error) {
		dir, err = c.IsDir(ctx, path)
		return err
	})
	return dir, err
}
