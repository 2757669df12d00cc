package main

import (
	"context"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
)

// noResumeUsage says what the flag of push and pull does.
const noResumeUsage = "fail when the connection is lost, rather than connect again and go on"

// link gives copies and scripts a way to the agent that lives longer than a connection; the caller closes it.
func (a *app) link(s *session, resume bool) *client.Link {
	if !resume {
		return client.NewLink(s.Client, nil)
	}
	told := false
	return client.NewLink(s.Client, func(ctx context.Context) (*client.Client, error) {
		if !told {
			a.note("the connection is lost; connecting again")
			told = true
		}
		framing, err := wire.ParseFraming(a.framing)
		if err != nil {
			return nil, err
		}
		dialing, stop := context.WithTimeout(ctx, connectIn)
		defer stop()
		c, err := client.Dial(dialing, s.path, client.Options{Framing: framing, Event: s.event})
		if err != nil {
			return nil, err
		}
		s.endAfter(c)
		if err := c.Alive(ctx); err != nil {
			c.Close()
			return nil, err
		}
		told = false
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
