package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins/clipboard/local"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// watchClipboard prints the changes in the guest, and with a desktop of its own passes changes on in both directions. Neither
// side reports what was set by the other, so that nothing comes back.
func (a *app) watchClipboard(s *session, sync bool) error {
	changed, ended := make(chan struct{}, 1), (<-chan struct{})(nil)
	var own *local.Clipboard
	if sync {
		opened, err := local.Open(s.ctx, os.Getenv)
		if err != nil {
			return fmt.Errorf("the clipboard of this desktop: %w", err)
		}
		defer opened.Close()
		err = opened.Watch(func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
		if err != nil {
			return fmt.Errorf("the clipboard of this desktop: %w", err)
		}
		own, ended = opened, opened.Done()
	}
	if err := s.WatchClipboard(s.ctx); err != nil {
		return err
	}
	for {
		select {
		case <-s.events.more:
			for _, event := range s.events.take() {
				change, ok := event.(*pb.ClipboardChangedEvent)
				if !ok {
					continue
				}
				if err := a.printClipboardChange(change); err != nil {
					return err
				}
				if own != nil {
					a.warnSync("to this desktop", toDesktop(s, own, change))
				}
			}
		case <-changed:
			a.warnSync("to the guest", toGuest(s, own))
		case <-ended:
			return errors.New("this desktop has ended")
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
		if err := context.Cause(s.ctx); err != nil {
			return err
		}
	}
}

// warnSync returns why a change was not passed on. The next one may be.
func (a *app) warnSync(where string, err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // that says that there is nothing to pass on
		fmt.Fprintf(a.stderr, "clipboard %s: %s\n", where, printable(err.Error()))
	}
}

// toDesktop passes the clipboard of the guest on.
func toDesktop(s *session, own *local.Clipboard, change *pb.ClipboardChangedEvent) error {
	kinds := map[pb.ClipboardType]local.Kind{
		pb.ClipboardType_CLIPBOARD_TYPE_TEXT: local.Text, pb.ClipboardType_CLIPBOARD_TYPE_HTML: local.HTML,
		pb.ClipboardType_CLIPBOARD_TYPE_IMAGE: local.PNG,
	}
	var list []local.Content
	for _, t := range change.Offered {
		kind, ok := kinds[t]
		if !ok {
			continue
		}
		data := change.Data
		if t != change.Type || change.Reason != "" {
			got, err := s.Clipboard(s.ctx, &pb.ClipboardGetRequest{PreferredType: t, Exact: true})
			if err != nil {
				return err
			}
			data = got.Data
		}
		list = append(list, local.Content{Kind: kind, Data: data})
	}
	if len(list) == 0 {
		return nil
	}
	return own.Set(s.ctx, list...)
}

// toGuest passes the clipboard of this desktop on.
func toGuest(s *session, own *local.Clipboard) error {
	first, offered, err := own.Get(s.ctx, local.HTML, local.Text, local.PNG)
	if err != nil {
		return err
	}
	request := &pb.ClipboardUpdateRequest{Data: first.Data}
	switch first.Kind {
	case local.HTML:
		request.Type = pb.ClipboardType_CLIPBOARD_TYPE_HTML
		if slices.Contains(offered, local.Text) {
			plain, _, err := own.Get(s.ctx, local.Text)
			if err != nil {
				return err
			}
			words := string(plain.Data)
			request.Text = &words
		}
	case local.PNG:
		request.Type = pb.ClipboardType_CLIPBOARD_TYPE_IMAGE
	}
	return s.SetClipboard(s.ctx, request)
}
