package client

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// pageSize is how many entries of a directory one reply has: few enough not to delay a pong.
const pageSize = 1000

// Stat describes what is at a path, a link itself.
func (c *Client) Stat(ctx context.Context, path string) (*pb.DirectoryEntry, error) {
	reply, err := callOn[*pb.FileStatResponse](ctx, c, path, &pb.FileStatRequest{Path: text.EscapePath(path)})
	return reply.GetEntry(), err
}

// List describes what is in a directory, sorted by name, and calls each with every entry until that returns an error. all
// includes names that begin with a dot. Where the agent could not read everything, the error comes after the entries that it
// could. Names and paths are as messages carry them: see text.UnescapePath.
func (c *Client) List(ctx context.Context, path string, all bool, each func(*pb.DirectoryEntry) error) error {
	var partial error
	for token := ""; ; {
		reply, err := callOn[*pb.ListDirectoryResponse](ctx, c, path, &pb.ListDirectoryRequest{
			Path: text.EscapePath(path), IncludeHidden: all, MaxEntries: pageSize, ContinuationToken: token,
		})
		if err != nil {
			return err
		}
		if reply.Error != "" && partial == nil {
			partial = errors.New(reply.Error)
		}
		for _, e := range reply.Entries {
			if err := each(e); err != nil {
				return err
			}
		}
		if reply.ContinuationToken == "" || reply.ContinuationToken == token {
			return partial
		}
		token = reply.ContinuationToken
	}
}

// IsDir reports whether a path leads to a directory, through links too. What does not exist is none.
func (c *Client) IsDir(ctx context.Context, path string) (bool, error) {
	e, err := c.Stat(ctx, path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return false, nil
	case err != nil:
		return false, err
	case e.IsDirectory || !e.IsSymlink:
		return e.IsDirectory, nil
	}
	_, err = Call[*pb.ListDirectoryResponse](ctx, c, &pb.ListDirectoryRequest{Path: text.EscapePath(path), MaxEntries: 1})
	var remote *fault.Remote
	if errors.As(err, &remote) {
		return false, nil
	}
	return err == nil, err
}

// Mkdir makes a directory; one that exists is left as it is. mode is its permission bits, 0: 0755.
func (c *Client) Mkdir(ctx context.Context, path string, mode uint32, parents bool) error {
	_, err := callOn[*pb.CreateDirectoryResponse](ctx, c, path, &pb.CreateDirectoryRequest{Path: text.EscapePath(path), Mode: mode, CreateParents: parents})
	return err
}

// Remove removes a file, a link or an empty directory; recursive removes a tree.
func (c *Client) Remove(ctx context.Context, path string, recursive bool) error {
	_, err := callOn[*pb.FileDeleteResponse](ctx, c, path, &pb.FileDeleteRequest{Path: text.EscapePath(path), Recursive: recursive})
	return err
}

// callOn is Call for a request about a path, which is added to an error that does not name it.
func callOn[Out proto.Message](ctx context.Context, c *Client, path string, request proto.Message) (Out, error) {
	reply, err := Call[Out](ctx, c, request)
	return reply, withPath(path, err)
}

// withPath adds the path to an error of a reply without error_detail.
func withPath(path string, err error) error {
	var remote *fault.Remote
	if err == nil || errors.As(err, &remote) || Gone(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fault.On(path, err)
}
