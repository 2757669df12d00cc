package netplan

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	udevTime  = 20 * time.Second
	undoTries = 4 // of what does not answer in time
)

// install makes generated files what they shall be; nil: gone. Those that are so already stay the files that they are: a
// renderer sees by that what changed.
func (r *Room) install(files map[string]*generated) error {
	root, err := os.OpenRoot(r.guest.Root())
	if err != nil {
		return fault.Cause(err)
	}
	defer root.Close()
	for _, file := range sorted(files) {
		if err := installOne(root, file[1:], files[file]); err != nil {
			return fault.On(file, fault.Cause(err))
		}
	}
	return nil
}

func installOne(root *os.Root, name string, want *generated) error {
	have, err := readOne(root, name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if want == nil {
			return nil
		}
	case err != nil:
		return err
	case want == nil:
		return root.Remove(name)
	case want.same(have):
		return nil
	}
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	temporary := path.Dir(name) + "/.quantix-" + rand.Text() // not read by anybody: it has no suffix
	if want.target != "" {
		err = root.Symlink(want.target, temporary)
	} else {
		err = writeNew(root, temporary, want)
	}
	if err == nil {
		err = root.Rename(temporary, name)
	}
	if err != nil {
		_ = root.Remove(temporary)
	}
	return err
}

// writeNew makes a file that nobody else reads before it has its owner and mode.
func writeNew(root *os.Root, name string, want *generated) error {
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(want.content)
	return errors.Join(err, file.Chown(int(want.uid), int(want.gid)), file.Chmod(os.FileMode(want.mode)), file.Close())
}

// keep makes a generated file that is kept over a boot what it shall be, as a part of the transaction.
func (r *Room) keep(ctx context.Context, call *builtins.Call, file string, want *generated) error {
	if want != nil {
		_, err := r.edit.Put(ctx, call, edit.File{
			Op: "netplan.apply", Path: file, Content: want.content, Attr: fsys.Attr{Mode: &want.mode}, Parents: true,
		})
		return err
	}
	c, err := r.edit.Begin(call, "netplan.apply", file, edit.Options{})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.On(file, err)
	}
	if c.Absent() {
		c.Close()
		return nil
	}
	return takeAway(ctx, c)
}

// act has the renderer take what a plan has.
func (r *Room) act(ctx context.Context, d *daemons, call *builtins.Call, p *plan, start bool) error {
	before, err := r.look(ctx)
	if err != nil {
		return err
	}
	ifup := before.ofIfup(p)
	if err := r.takeDown(ctx, ifup, ""); err != nil { // as the files say now
		return err
	}
	files := map[string]*generated{}
	for _, file := range p.paths {
		if !lasting(file) {
			files[file] = p.want[file]
		} else if err := r.keep(ctx, call, file, p.want[file]); err != nil {
			return err
		}
	}
	if err := r.install(files); err != nil {
		return err
	}
	if err := r.reread(ctx, d, p.paths); err != nil {
		return err
	}
	n, err := r.look(ctx)
	if err != nil {
		return err
	}
	if err := n.notOthers(p); err != nil { // ifdown has not removed what the administrator's files configured
		return err
	}
	for _, name := range p.gone {
		if err := n.delete(name); err != nil {
			return err
		}
	}
	for _, l := range p.changed {
		for _, have := range n.find(l) {
			if l.rename != "" && l.mac != "" && have.Name != l.rename && have.Kind == "physical" {
				if err := renameLink(have.Index, l.rename); err != nil {
					return fault.On(have.Name, fault.Wrapf(err, "it cannot be called %s: %v", l.rename, err))
				}
				have.Name = l.rename
			}
			if have.Kind == "physical" && slices.ContainsFunc(p.paths, func(file string) bool {
				return strings.HasSuffix(file, ".link") && slices.Contains(l.files, file)
			}) {
				r.linkSettings(ctx, have.Name)
			}
			if l.renderer == byNetworkManager && p.touches(forUdev) { // whether NetworkManager manages it is said there
				if err := r.udevadm(ctx, "trigger", "--action=change", "--settle", "/sys/class/net/"+have.Name); err != nil {
					return err
				}
			}
		}
	}
	switch {
	case start || p.makesByNetworkd():
		err = startNetworkd(ctx, d, start)
	case p.touches(forNetworkd):
		err = reloadNetworkd(ctx, d, n.touched(p))
	}
	if err != nil {
		return err
	}
	if err := r.bringUp(ctx, ifup); err != nil {
		return err
	}
	return useProfiles(ctx, d, profiles(p.paths))
}

// touched are the interfaces, but for virtual ones that are being made, for which systemd-networkd has another file than
// before.
func (n *snapshot) touched(p *plan) (list []int) {
	for _, l := range p.changed {
		if !slices.ContainsFunc(l.files, func(file string) bool {
			return strings.HasSuffix(file, ".network") && slices.Contains(p.paths, file)
		}) || l.virtual != "" && slices.Contains(p.made, l.virtual) {
			continue
		}
		for _, have := range n.find(l) {
			list = append(list, have.Index)
		}
	}
	return list
}

// reread has udev and systemd read what changed of theirs.
func (r *Room) reread(ctx context.Context, d *daemons, paths []string) error {
	has := func(test func(file string) bool) bool { return slices.ContainsFunc(paths, test) }
	if has(func(file string) bool {
		return forUdev(file) || strings.HasSuffix(file, ".link")
	}) {
		if err := r.udevadm(ctx, "control", "--reload"); err != nil {
			return err
		}
	}
	if has(func(file string) bool { return strings.HasPrefix(file, "/run/systemd/system/") }) {
		return reloadUnits(ctx, d)
	}
	return nil
}

// linkSettings has udev set what a .link file says beside the name. What cannot be set then is set at the next boot: netplan's
// own apply goes on as well.
func (r *Room) linkSettings(ctx context.Context, name string) {
	_ = r.udevadm(ctx, "test-builtin", "net_setup_link", "/sys/class/net/"+name)
}

func (r *Room) udevadm(ctx context.Context, args ...string) error {
	argv := append([]string{"udevadm"}, args...)
	result, err := r.guest.Run(ctx, guest.Command{Line: strings.Join(argv, " "), Irreversible: true}, proc.Spec{
		Argv: argv, Tied: true, Timeout: udevTime,
	})
	if err == nil {
		err = result.Err()
	}
	return fault.On(strings.Join(argv[:2], " "), err)
}

// delete deletes a virtual interface of a name, if there is one.
func (n *snapshot) delete(name string) error {
	for _, have := range n.links {
		if have.Name != name {
			continue
		}
		if have.Kind == "physical" || have.Kind == "loopback" {
			return fault.On(name, fault.Refuse("it is hardware, and cannot be deleted"))
		}
		return fault.On(name, deleteLink(have.Index))
	}
	return nil
}

// stayed reports whether the interface of a name is the one that was there before, and none that was made instead.
func (n *snapshot) stayed(name string, before []*pb.NetplanLinkBefore) bool {
	return slices.ContainsFunc(n.links, func(have facts.Link) bool {
		return have.Name == name && slices.ContainsFunc(before, func(was *pb.NetplanLinkBefore) bool {
			return was.Name == name && int(was.Index) == have.Index
		})
	})
}

// undo is the inverse of the rows that change something.
func (r *Room) undo(ctx context.Context, call *builtins.Call, in *pb.NetplanUndo) (*pb.Changed, error) {
	if r.mayApply() != nil {
		return &pb.Changed{}, nil
	}
	sameBoot := in.BootId == "" || in.BootId == facts.BootID()
	switch in.Action {
	case pb.NetplanUndo_ACTION_RESTORE:
		if !sameBoot { // what was generated, and what it did, ended with that boot
			return &pb.Changed{}, nil
		}
		err := r.goBack(ctx, in)
		for try := 1; try < undoTries && errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil; try++ {
			err = r.goBack(ctx, in) // a service manager that reads its files does not answer meanwhile
		}
		return &pb.Changed{Changed: true}, err
	case pb.NetplanUndo_ACTION_FILES:
		if sameBoot { // what was applied was taken back by itself
			return &pb.Changed{}, nil
		}
		n, err := r.look(ctx)
		if err == nil { // udev has given out names by what the files said at boot
			err = n.renamed(in.Links, sameMAC)
		}
		if err != nil {
			return nil, err
		}
		changed, err := r.goOn(ctx, call)
		return &pb.Changed{Changed: changed}, err
	}
	return nil, fault.Unsupported("undoing %s", in.Action)
}

// goBack gives the renderer what it had, and sees that the network is as it was. It bears that this is so already.
func (r *Room) goBack(ctx context.Context, in *pb.NetplanUndo) error {
	d := r.system.daemons
	defer d.use()()
	files, paths := map[string]*generated{}, []string{}
	for _, f := range in.Files {
		if !ofNetplan().MatchString(f.Path) {
			return fault.On(f.Path, fault.Refuse("it is no file of netplan"))
		}
		paths = append(paths, f.Path)
		if lasting(f.Path) { // the transaction has restored it already
			continue
		}
		files[f.Path] = nil
		if !f.Absent {
			files[f.Path] = &generated{content: f.Content, mode: f.Mode, uid: f.Uid, gid: f.Gid, target: f.Target}
		}
	}
	err := r.install(files)
	if err == nil {
		err = r.reread(ctx, d, paths)
	}
	if err != nil {
		return err
	}
	for file, want := range files {
		if want == nil {
			delete(files, file)
		}
	}
	if err := r.takeDown(ctx, in.IfupAfter, in.Interfaces); err != nil {
		return err
	}
	n, err := r.look(ctx)
	if err != nil {
		return err
	}
	for _, name := range in.Made {
		if n.stayed(name, in.Links) {
			continue
		}
		if err := n.delete(name); err != nil {
			return err
		}
	}
	if err := n.restoreHardware(in.Links); err != nil {
		return err
	}
	for _, was := range in.Links {
		if slices.ContainsFunc(paths, func(file string) bool { return strings.HasSuffix(file, ".link") }) && was.Mac != "" {
			r.linkSettings(ctx, was.Name)
		}
	}
	if in.StartNetworkd {
		err = stopNetworkd(ctx, d)
	} else if slices.ContainsFunc(paths, forNetworkd) {
		if back := newPlan(nil, files); back.makesByNetworkd() {
			err = startNetworkd(ctx, d, false)
		} else {
			err = reloadNetworkd(ctx, d, n.touched(back))
		}
	}
	if err != nil {
		return err
	}
	endCheckpoint(ctx, d, in.Checkpoint)
	// What does not come up did not before either, if all is as it was.
	failed := errors.Join(r.bringUp(ctx, in.IfupBefore), useProfiles(ctx, d, profiles(paths)))
	if err := r.restored(ctx, in, restoreTime); err != nil {
		return errors.Join(err, failed)
	}
	return nil
}

// restoreHardware restores the names, hardware addresses and MTUs of interfaces: a renderer does not touch an interface for which it has
// no file any more.
func (n *snapshot) restoreHardware(links []*pb.NetplanLinkBefore) error {
	if err := n.renamed(links, sameIndex); err != nil {
		return err
	}
	for _, was := range links {
		for _, have := range n.links {
			if have.Index != int(was.Index) || have.Name != was.Name {
				continue
			}
			if mac, err := net.ParseMAC(was.Mac); err == nil && have.MAC != was.Mac {
				if err := setMAC(have.Index, mac); err != nil {
					return fault.On(have.Name, err)
				}
			}
			if was.Mtu != 0 && have.MTU != was.Mtu {
				if err := setMTU(have.Index, was.Mtu); err != nil {
					return fault.On(have.Name, err)
				}
			}
		}
	}
	return nil
}

// goOn applies what the files say now, if the guest was booted with something else. At early boot there is nothing to be done:
// the renderers have not read anything yet.
func (r *Room) goOn(ctx context.Context, call *builtins.Call) (bool, error) {
	if !sysbus.Available() {
		return false, nil
	}
	set, err := documents(ctx, r.guest.Files)
	if err != nil {
		return false, err
	}
	want, err := r.generate(ctx, set)
	if err != nil {
		return false, err
	}
	have, err := r.current(want)
	if err != nil {
		return false, err
	}
	p := newPlan(have, want)
	if len(p.paths) == 0 {
		return false, nil
	}
	if err := p.supported(); err != nil {
		return false, err
	}
	d := r.system.daemons
	defer d.use()()
	start, err := startsNetworkd(ctx, d, p)
	if err == nil {
		err = r.act(ctx, d, call, p, start)
	}
	return true, err
}
