package client

import (
	"context"
	"errors"
	"os"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// sendSmall reads small files and sends them.
func (p *pushTree) sendSmall(ctx context.Context, items []item) error {
	var batches [][]item
	for size := int64(treeBytes) + 1; len(items) > 0; items = items[1:] { // the first begins a batch
		own := items[0].size + xattrBytes(items[0].kept.xattrs)
		if size += own; size > treeBytes || len(batches[len(batches)-1]) == treeBatch {
			batches, size = append(batches, nil), own
		}
		batches[len(batches)-1] = append(batches[len(batches)-1], items[0])
	}
	return parallel(ctx, treeFlight, len(batches), func(ctx context.Context, n int) error {
		var list []todo
		for _, it := range batches[n] {
			e, err := p.smallFile(it)
			if err == nil {
				list = append(list, todo{it, e, nil})
			}
			p.firstName(it, err)
			if err = p.handleFailure(ctx, it.full, err); err != nil {
				return err
			}
		}
		return p.sendBatch(ctx, list)
	})
}

func (p *pushTree) smallFile(it item) (*pb.TreeEntry, error) {
	data, err := os.ReadFile(it.full)
	if err != nil {
		return nil, err
	}
	if len(data) > treeBytes {
		return nil, fault.Wrapf(fault.ErrChanged, "the file became larger while it was read")
	}
	e := p.entry(it, "file")
	e.Data, e.Crc32C, e.Separate = data, new(crc(data)), p.tree.All
	if e.Mode == nil {
		e.Mode = new(uint32(it.mode))
	}
	return e, nil
}

// send sends entries that carry no files.
func (p *pushTree) send(ctx context.Context, workers int, list []todo) error {
	var batches [][]todo
	for size := int64(treeBytes) + 1; len(list) > 0; list = list[1:] {
		own := xattrBytes(list[0].entry.Xattrs)
		if size += own; size > treeBytes || len(batches[len(batches)-1]) == treeBatch {
			batches, size = append(batches, nil), own
		}
		batches[len(batches)-1] = append(batches[len(batches)-1], list[0])
	}
	return parallel(ctx, workers, len(batches), func(ctx context.Context, n int) error { return p.sendBatch(ctx, batches[n]) })
}

// xattrBytes is about how much extended attributes take of a request.
func xattrBytes(list []*pb.CopiedAttribute) (n int64) {
	for _, x := range list {
		n += int64(len(x.Name) + len(x.Value))
	}
	return n
}

// sendBatch sends the entries of one request. Where the request as a whole is refused, each entry is sent by itself; where it
// is too large, each half.
func (p *pushTree) sendBatch(ctx context.Context, list []todo) error {
	if len(list) == 0 {
		return nil
	}
	results, err := p.write(ctx, list)
	if errors.Is(err, fault.ErrRefused) && len(list) == 1 && list[0].entry.Kind == "directory" {
		// Where no mode may be changed a directory is made by the request that changes none of one that is there.
		results, err = []*pb.TreeResult{{}}, p.l.Do(ctx, func(ctx context.Context, c *Client) error {
			return c.Mkdir(ctx, p.place(list[0].it), list[0].entry.GetMode(), false)
		})
	}
	if errors.Is(err, fault.ErrRefused) && len(list) > 1 {
		for i := range list {
			if err := p.sendBatch(ctx, list[i:i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	if n := len(list); errors.Is(err, fault.ErrTooLarge) && n > 1 {
		if err := p.sendBatch(ctx, list[:n/2]); err != nil {
			return err
		}
		return p.sendBatch(ctx, list[n/2:])
	}
	for i, t := range list {
		failure := err
		if err == nil {
			failure = fault.FromDetail(results[i].GetError())
		}
		if t.entry.Kind == "file" {
			p.done(int64(len(t.entry.Data)), failure)
			p.advance(t.it.size)
			p.firstName(t.it, failure)
		}
		if t.count != nil {
			p.count(t.count, 1, failure)
		}
		if failure = p.handleFailure(ctx, p.place(t.it), failure); failure != nil {
			return failure
		}
	}
	return nil
}

// write sends one request, and again where the agent stopped in the middle of it.
func (p *pushTree) write(ctx context.Context, list []todo) (results []*pb.TreeResult, err error) {
	request := &pb.WriteFilesRequest{}
	for _, t := range list {
		request.Entries = append(request.Entries, t.entry)
	}
	p.mu.Lock()
	p.wrote = true
	p.mu.Unlock()
	interrupted := false
	err = p.l.Do(ctx, func(ctx context.Context, c *Client) error {
		reply, err := Call[*pb.WriteFilesResponse](ctx, c, request)
		if err == nil && len(reply.Results) != len(list) {
			err = fault.Wrapf(fault.ErrCorrupt, "%d results of %d entries", len(reply.Results), len(list))
		}
		results = reply.GetResults()
		for _, r := range results {
			if failure := fault.FromDetail(r.Error); err == nil && errors.Is(failure, context.Canceled) {
				err, interrupted = failure, true
			}
		}
		return err
	})
	if interrupted && len(results) == len(list) && errors.Is(err, context.Canceled) && ctx.Err() == nil {
		err = nil // each result has its own error
	}
	return results, err
}
