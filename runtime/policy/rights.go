package policy

import (
	"maps"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Rights are what a script may call: what it declares in needs, or what a request allows it. Nil is everything.
//
//	netplan, file      the whole room
//	file:/etc/hosts    the room's operations on this path alone
//	file:/etc/app/     on this directory and all that is below
//	exec:useradd       as far as they run this program, by name or absolute path
//	service:nginx      on this object of the room's kind alone
//
// What an object is of, a path, a command or a thing with a name, the room's Scope says. A command that goes with a call of
// another room, as that of tx.on_rollback, needs its program too, and an object of another room, as that of tx.notify, that
// object. What touches names of a command needs nothing more: it binds the command and is no call on files. Needs of paths bind
// by path: they are looked up when the script starts, links in them and in the calls followed.
type Rights struct {
	who   string // whose word is missing
	needs []need
	runs  string            // the room whose objects commands are
	kinds map[string]string // the room whose objects are of a kind
}

// need is one word.
type need struct {
	room, object string
	scope        builtins.Scope
	below        bool     // a path with all that is below
	places       []string // of a path, as it was when the script started
}

// NewRights reads needs. No needs are no limit: then it returns nil. who completes "which …", and scopes are the rooms that may
// be named and what a need can limit each to. The error wraps fs.ErrInvalid and names the bad word.
func NewRights(files *fsys.Root, who string, needs []string, scopes map[string]builtins.Scope) (*Rights, error) {
	if len(needs) == 0 {
		return nil, nil
	}
	r := &Rights{who: who, kinds: map[string]string{}}
	for room, scope := range scopes {
		switch scope {
		case builtins.ScopeNone: // an object of that kind needs the whole room
			r.kinds[room] = room
		case builtins.ScopePaths:
		case builtins.ScopeCommands:
			r.runs = room
		default:
			r.kinds[string(scope)] = room
		}
	}
	guest := &Guest{Files: files}
	for _, text := range needs {
		room, object, limited := strings.Cut(text, ":")
		scope, known := scopes[room]
		n := need{room: room, object: object, scope: scope}
		err := error(nil)
		switch {
		case !known:
			return nil, fault.Invalid("need %q: there is no room %q; there are %s", text, room, strings.Join(slices.Sorted(maps.Keys(scopes)), ", "))
		case !limited:
		case scope == builtins.ScopeNone:
			return nil, fault.Invalid("need %q: %s is needed as a whole; what can be limited to something are %s", text, room, strings.Join(limitable(scopes), ", "))
		case scope == builtins.ScopePaths:
			err = place(room, object)
			n.below, n.places = object != "" && fsys.HasSeparator(object[len(object)-1:]), guest.fixed(object)
		case scope == builtins.ScopeCommands:
			err = program(room, object)
		default:
			err = name(room, object)
		}
		if err != nil {
			return nil, fault.Invalid("need %q: %v", text, err)
		}
		r.needs = append(r.needs, n)
	}
	return r, nil
}

// limitable are the rooms that a need can limit.
func limitable(scopes map[string]builtins.Scope) (rooms []string) {
	for _, room := range slices.Sorted(maps.Keys(scopes)) {
		if scopes[room] != builtins.ScopeNone {
			rooms = append(rooms, room)
		}
	}
	return rooms
}

func name(room, text string) error {
	if text == "" || strings.ContainsAny(text, " \t\n*?[\x00") {
		return fault.Invalid("%s: takes a name without blanks and wildcards", room)
	}
	return nil
}

func place(room, text string) error {
	if !fsys.IsAbs(text) || strings.ContainsAny(text, "*?[\x00") || slices.Contains(fsys.Elements(text), "..") {
		return fault.Invalid("%s: takes an absolute path without wildcards; one that ends in / stands for all below it", room)
	}
	return nil
}

func program(room, text string) error {
	if text == "" || strings.ContainsAny(text, " \t\n*?[\x00") || strings.Contains(text, "/") && !fsys.IsAbs(text) {
		return fault.Invalid("%s: takes the name of a program or its absolute path", room)
	}
	return nil
}

// Check returns why a call is beyond the rights; nil: it is not. files is what the call acts on, a pretended one too, and
// access the row's for the request.
func (r *Rights) Check(files *fsys.Root, op *builtins.Op, access builtins.Access) error {
	if r == nil {
		return nil
	}
	own := r.of(op.Room())
	if len(own) == 0 {
		return r.beyond(op.Room())
	}
	if err := r.foreign(op.Room(), access.Objects); err != nil {
		return err
	}
	guest := &Guest{Files: files}
	if err := r.commands(guest, access.Commands); err != nil || whole(own) {
		return err
	}
	switch own[0].scope {
	case builtins.ScopePaths:
		return r.paths(guest, own, access)
	case builtins.ScopeCommands:
		return nil
	}
	return r.objects(own, access)
}

// foreign holds the objects of a request that are another room's, as that of tx.notify is, against the needs of that room.
func (r *Rights) foreign(room string, objects []builtins.Object) error {
	for _, o := range objects {
		other := r.kinds[o.Kind]
		if other == "" || other == room {
			continue
		}
		switch own := r.of(other); {
		case whole(own) || slices.ContainsFunc(own, func(n need) bool { return n.names(o) }):
		case o.Kind == other:
			return r.beyond(other)
		default:
			return r.beyond(other + ":" + o.Name)
		}
	}
	return nil
}

// of are the needs of a room.
func (r *Rights) of(room string) (list []need) {
	for _, n := range r.needs {
		if n.room == room {
			list = append(list, n)
		}
	}
	return list
}

// whole reports whether one of the needs is of a whole room.
func whole(needs []need) bool {
	return slices.ContainsFunc(needs, func(n need) bool { return n.object == "" })
}

// paths checks the paths of a request against the needs of its room.
func (r *Rights) paths(g *Guest, own []need, access builtins.Access) error {
	for _, text := range slices.Concat(access.Reads, access.Writes) {
		if err := r.path(g, own, text, access.Checked); err != nil {
			return err
		}
	}
	for _, s := range access.Siblings {
		if at, err := g.Files.Resolve(s.Path, true); err == nil {
			if err := r.path(g, own, at+s.Suffix, access.Checked); err != nil {
				return err
			}
		}
	}
	for _, text := range access.Patterns {
		dir, deep := builtins.Static(text)
		if deep && !slices.ContainsFunc(own, func(n need) bool { return n.below && slices.ContainsFunc(n.places, fsys.IsRoot) }) {
			return r.beyond(own[0].room + ":/") // links that the wildcards go through may lead anywhere
		}
		if err := r.path(g, own, dir, access.Checked); err != nil {
			return err
		}
	}
	return nil
}

// path holds a path, and what it leads to, against the needs.
func (r *Rights) path(g *Guest, own []need, text string, checked *fsys.CheckedPaths) error {
	if checked == nil {
		checked = g.Files.NewCheckedPaths()
	}
	var places []string
	for _, follow := range []bool{false, true} {
		found, err := checked.Look(text, follow)
		if err == nil {
			places = append(places, found.Path)
		} else if !follow {
			return fault.On(text, err)
		}
	}
	for _, at := range places {
		if !slices.ContainsFunc(own, func(n need) bool { return n.covers(at) }) {
			return r.beyond(own[0].room + ":" + at)
		}
	}
	return nil
}

func (n need) covers(at string) bool {
	return slices.ContainsFunc(n.places, func(p string) bool { return at == p || n.below && fsys.Within(at, p) })
}

// names reports whether the need is of an object. Its kind may follow a dot: nginx.service is the service nginx.
func (n need) names(o builtins.Object) bool {
	return n.object == o.Name || n.object == o.Name+"."+o.Kind
}

// objects holds the objects of the room's own kind against its needs. A call that names none is about all.
func (r *Rights) objects(own []need, access builtins.Access) error {
	named := false
	for _, o := range access.Objects {
		if o.Kind != string(own[0].scope) {
			continue
		}
		named = true
		if !slices.ContainsFunc(own, func(n need) bool { return n.names(o) }) {
			return r.beyond(own[0].room + ":" + o.Name)
		}
	}
	if !named {
		return r.beyond(own[0].room)
	}
	return nil
}

// commands checks programs against the needs of the rooms whose objects commands are.
func (r *Rights) commands(g *Guest, commands []builtins.Command) error {
	var own []need
	for _, n := range r.needs {
		if n.scope == builtins.ScopeCommands {
			own = append(own, n)
		}
	}
	if whole(own) {
		return nil
	}
	for _, c := range commands {
		if err := r.command(g, own, c); err != nil {
			return err
		}
	}
	return nil
}

// command checks a program against the needs.
func (r *Rights) command(g *Guest, own []need, c builtins.Command) error {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return nil
	}
	found, err := g.programs(c.Argv[0], c.Paths, c.Dir)
	if err != nil {
		return fault.On(c.Argv[0], err)
	}
	name := c.Argv[0]
	if len(found) == 0 { // it will not run; the operation reports what is missing, if the name is not
		if slices.ContainsFunc(own, func(n need) bool { return fsys.Base(n.object) == name }) {
			return nil
		}
		return r.beyond(r.runs + ":" + name)
	}
	for _, program := range found {
		at, err := g.Files.Resolve(program, false)
		if err != nil {
			return fault.On(program, err)
		}
		if !slices.ContainsFunc(own, func(n need) bool { return g.isProgram(n.object, at) }) {
			return r.beyond(r.runs + ":" + name)
		}
	}
	if unlisted(c.Env, nil) != "" {
		return r.beyond(r.runs) // it may run another program then
	}
	return nil
}

func (r *Rights) beyond(missing string) error {
	return fault.Wrapf(builtins.ErrPolicy, "refused: it needs %q, which %s", missing, r.who)
}
