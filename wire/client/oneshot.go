package client

import (
	"context"
	"io"
)

// Transfers over one connection: they fail when it is lost, where those of a Link are resumed.

// PushTree is Link.PushTree without resuming.
func (c *Client) PushTree(ctx context.Context, local, remote string, tree Tree) (CopyStats, error) {
	return NewLink(c, nil).PushTree(ctx, local, remote, tree)
}

// PullTree is Link.PullTree without resuming.
func (c *Client) PullTree(ctx context.Context, remote, local string, tree Tree) (CopyStats, error) {
	return NewLink(c, nil).PullTree(ctx, remote, local, tree)
}

// PullFile is Link.PullFile without resuming.
func (c *Client) PullFile(ctx context.Context, remote, local string, o PullOptions) (PullResult, error) {
	return NewLink(c, nil).PullFile(ctx, remote, local, o)
}

// PushFile is Link.PushFile without resuming.
func (c *Client) PushFile(ctx context.Context, remote string, from io.Reader, o PushOptions) (int64, error) {
	return NewLink(c, nil).PushFile(ctx, remote, from, o)
}

// PullTo is Link.PullTo without resuming.
func (c *Client) PullTo(ctx context.Context, remote string, to io.Writer, o PullOptions) (PullResult, error) {
	return NewLink(c, nil).PullTo(ctx, remote, to, o)
}
