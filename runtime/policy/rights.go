package policy

import (
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Rights are what a script may call: what it declares in needs, or what a request allows it. Nil is everything.
//
//	netplan, file      the whole room
//	file:/etc/hosts    the operations on files, on this path alone
//	file:/etc/app/     on this directory and all that is below
//	exec:useradd       the operations on commands, as far as they run this program, by name or absolute path
//
// A command that goes with a call of another room, as that of tx.on_rollback, needs its program too. What touches names
// of a command needs nothing more: it binds the command and is no call on files. Needs of paths bind by path: they are
// looked up when the script starts, links in them and in the calls followed.
type Rights struct {
	who   string // whose word is missing
	needs []need
}

// need is one word.
type need struct {
	room, object string
	below        bool     // a path with all that is below
	places       []string // of a path, as it was when the script started
}

// NewRights reads needs. No needs are no limit: then it gives nil. who completes "which …", and rooms are those that may be
// named. The error wraps fs.ErrInvalid and names the bad word.
func NewRights(files *fsys.Root, who string, needs, rooms []string) (*Rights, error) {
	if len(needs) == 0 {
		return nil, nil
	}
	r := &Rights{who: who}
	guest := &Guest{Files: files}
	for _, text := range needs {
		room, object, limited := strings.Cut(text, ":")
		n := need{room: room, object: object}
		switch {
		case !slices.Contains(rooms, room):
			return nil, fault.Invalid("need %q: there is no room %q; there are %s", text, room, strings.Join(rooms, ", "))
		case !limited:
		case room == "file":
			if err := place(object); err != nil {
				return nil, fault.Invalid("need %q: %v", text, err)
			}
			n.below, n.places = strings.HasSuffix(object, "/"), guest.fixed(object)
		case room == "exec":
			if err := program(object); err != nil {
				return nil, fault.Invalid("need %q: %v", text, err)
			}
		default:
			return nil, fault.Invalid("need %q: only file and exec can be limited to something", text)
		}
		r.needs = append(r.needs, n)
	}
	return r, nil
}

func place(text string) error {
	if !path.IsAbs(text) || strings.ContainsAny(text, "*?[\x00") || slices.Contains(strings.Split(text, "/"), "..") {
		return fault.Invalid("file: takes an absolute path without wildcards; one that ends in / stands for all below it")
	}
	return nil
}

func program(text string) error {
	if text == "" || strings.ContainsAny(text, " \t\n*?[\x00") || strings.Contains(text, "/") && !path.IsAbs(text) {
		return fault.Invalid("exec: takes the name of a program or its absolute path")
	}
	return nil
}

// Check says why a call is beyond the rights; nil: it is not. files is what the call acts on, a pretended one too.
func (r *Rights) Check(files *fsys.Root, op *builtins.Op, in proto.Message) error {
	if r == nil {
		return nil
	}
	room, _, _ := strings.Cut(op.Name, ".")
	if !slices.ContainsFunc(r.needs, func(n need) bool { return n.room == room }) {
		return r.beyond(room)
	}
	guest := &Guest{Files: files}
	access := op.Access(in)
	for _, c := range access.Commands {
		if err := r.command(guest, c); err != nil {
			return err
		}
	}
	if room != "file" || r.whole("file") {
		return nil
	}
	for _, text := range slices.Concat(access.Reads, access.Writes) {
		if err := r.path(guest, text); err != nil {
			return err
		}
	}
	for _, text := range access.Patterns {
		dir, deep := builtins.Static(text)
		if deep && !slices.ContainsFunc(r.needs, func(n need) bool { return n.room == "file" && n.below && slices.Contains(n.places, "/") }) {
			return r.beyond("file:/") // links that the wildcards go through may lead anywhere
		}
		if err := r.path(guest, dir); err != nil {
			return err
		}
	}
	return nil
}

// path holds a path, and what it leads to, against the needs.
func (r *Rights) path(g *Guest, text string) error {
	var places []string
	for _, follow := range []bool{false, true} {
		resolved, err := g.Files.Resolve(text, follow)
		if err == nil {
			places = append(places, resolved)
		} else if !follow {
			return fault.On(text, err)
		}
	}
	for _, at := range places {
		if !slices.ContainsFunc(r.needs, func(n need) bool { return n.room == "file" && n.covers(at) }) {
			return r.beyond("file:" + at)
		}
	}
	return nil
}

func (n need) covers(at string) bool {
	return slices.ContainsFunc(n.places, func(p string) bool { return at == p || n.below && fsys.Within(at, p) })
}

// command holds a program against the needs.
func (r *Rights) command(g *Guest, c builtins.Command) error {
	if r.whole("exec") || len(c.Argv) == 0 || c.Argv[0] == "" {
		return nil
	}
	if injects(c.Env) != "" {
		return r.beyond("exec") // it would be another program
	}
	found, err := g.programs(c.Argv[0], c.Paths, c.Dir)
	if err != nil {
		return fault.On(c.Argv[0], err)
	}
	name := c.Argv[0]
	if len(found) == 0 { // it will not run; what is missing is told by the operation, if the name is not
		if slices.ContainsFunc(r.needs, func(n need) bool { return n.room == "exec" && path.Base(n.object) == name }) {
			return nil
		}
		return r.beyond("exec:" + name)
	}
	for _, program := range found {
		at, err := g.Files.Resolve(program, false)
		if err != nil {
			return fault.On(program, err)
		}
		if !slices.ContainsFunc(r.needs, func(n need) bool { return n.room == "exec" && g.isProgram(n.object, at) }) {
			return r.beyond("exec:" + name)
		}
	}
	return nil
}

func (r *Rights) whole(room string) bool {
	return slices.ContainsFunc(r.needs, func(n need) bool { return n.room == room && n.object == "" })
}

func (r *Rights) beyond(missing string) error {
	return fault.Wrapf(builtins.ErrPolicy, "refused: it needs %q, which %s", missing, r.who)
}
