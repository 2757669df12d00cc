package client

import (
	"context"
	"io"
)

// The copies over one connection: they end with it. A Link's go on.

// PushTree is Link.PushTree without another try.
func (c *Client) PushTree(ctx context.Context, local, remote string, tree Tree) (Copied, error) {
	return NewLink(c, nil).PushTree(ctx, local, remote, tree)
}

// PullTree is Link.PullTree without another try.
func (c *Client) PullTree(ctx context.Context, remote, local string, tree Tree) (Copied, error) {
	return NewLink(c, nil).PullTree(ctx, remote, local, tree)
}

// PullFile is Link.PullFile without another try.
func (c *Client) PullFile(ctx context.Context, remote, local string, o PullOptions) (Pulled, error) {
	return NewLink(c, nil).PullFile(ctx, remote, local, o)
}

// PushFile is Link.PushFile without another try.
func (c *Client) PushFile(ctx context.Context, remote string, from io.Reader, o PushOptions) (int64, error) {
	return NewLink(c, nil).PushFile(ctx, remote, from, o)
}

// PullTo is Link.PullTo without another try.
func (c *Client) PullTo(ctx context.Context, remote string, to io.Writer, o PullOptions) (Pulled, error) {
	return NewLink(c, nil).PullTo(ctx, remote, to, o)
}
