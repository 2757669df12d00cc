package client

import (
	"context"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Clipboard returns the content of the clipboard of the guest's desktop. An error of cause fs.ErrNotExist says that there is
// none of that type; one of cause errors.ErrUnsupported that there is no desktop, or no way to its clipboard.
func (c *Client) Clipboard(ctx context.Context, request *pb.ClipboardGetRequest) (*pb.ClipboardGetResponse, error) {
	return Call[*pb.ClipboardGetResponse](ctx, c, request)
}

// SetClipboard sets the clipboard of the guest's desktop.
func (c *Client) SetClipboard(ctx context.Context, request *pb.ClipboardUpdateRequest) error {
	_, err := Call[*pb.ClipboardUpdateResponse](ctx, c, request)
	return err
}

// WatchClipboard asks for a *pb.ClipboardChangedEvent after each change of the clipboard in the guest, which Options.Event is
// called with. Changes by SetClipboard are not reported.
func (c *Client) WatchClipboard(ctx context.Context) error {
	_, err := Call[*pb.ClipboardWatchResponse](ctx, c, &pb.ClipboardWatchRequest{})
	return err
}
