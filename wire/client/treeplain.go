package client

import (
	"context"
	"slices"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// plain copies to an agent without requests for trees.
func (p *pushTree) plain(ctx context.Context, items []item) error {
	var links []item
	for _, it := range items {
		if it.link {
			links = append(links, it)
			continue
		}
		if err := p.handleFailure(ctx, it.full, p.plainOne(ctx, it)); err != nil {
			return err
		}
	}
	return p.pushLinks(ctx, links)
}

func (p *pushTree) plainOne(ctx context.Context, it item) error {
	if !it.dir {
		return p.pushFile(ctx, it)
	}
	err := p.l.Do(ctx, func(ctx context.Context, c *Client) error {
		return c.Mkdir(ctx, p.place(it), uint32(it.mode), p.tree.Push.Parents && it.name == ".")
	})
	p.count(&p.copied.Directories, 1, err)
	return err
}

// linkScript makes links, all or none.
const linkScript = "for _, l in ipairs(params.links) do file.symlink(l.target, l.path) end"

// linkBatch bounds the elements of one message.
const linkBatch = 500

func (p *pushTree) pushLinks(ctx context.Context, links []item) error {
	for batch := range slices.Chunk(links, linkBatch) {
		err := p.makeLinks(ctx, batch)
		p.count(&p.copied.Links, len(batch), err)
		if err == nil {
			continue
		}
		for _, l := range batch {
			if err := p.handleFailure(ctx, p.place(l), fault.On("links were not made", err)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pushTree) makeLinks(ctx context.Context, links []item) error {
	list := make([]any, len(links))
	for i, l := range links {
		list[i] = map[string]any{"target": text.EscapePath(l.target), "path": text.EscapePath(p.place(l))}
	}
	params, err := structpb.NewStruct(map[string]any{"links": list})
	if err != nil {
		return err
	}
	return p.l.Do(ctx, func(ctx context.Context, c *Client) error {
		reply, err := Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(linkScript), Params: params})
		return replyError(reply.GetError(), err)
	})
}
