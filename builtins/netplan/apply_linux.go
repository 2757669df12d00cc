package netplan

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	defaultTime = 20 * time.Second // a host waits for 30 s
	maxTime     = 240 * time.Second
	restoreTime = 45 * time.Second // to see that the network is as it was; a lease may take 30
)

// system is what of the running machine tests replace.
type system struct {
	unsupported string
	links       func() ([]facts.Link, error)
	// renderer returns who gets the configuration in a guest without netplan.
	renderer func(ctx context.Context) (string, error)
	daemons  *daemons
}

func running(*guest.Guest) system {
	d := &daemons{}
	return system{
		links: facts.Links, daemons: d, renderer: func(ctx context.Context) (string, error) { return rendererHere(ctx, d) },
	}
}

// prepare has ready what an apply needs that comes soon.
func (s system) prepare(ctx context.Context) { s.daemons.prepare(ctx) }

func (s system) close() error {
	s.daemons.close()
	return nil
}

func ownerOf(info fs.FileInfo) (uid, gid uint32) {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Uid, stat.Gid
	}
	return 0, 0
}

// current returns what was generated last, which is what the renderers have. Of ifupdown's files all are, where it is the
// renderer.
func (r *Room) current(want map[string]*generated) (map[string]*generated, error) {
	root, err := os.OpenRoot(r.guest.Root())
	if err != nil {
		return nil, fault.Cause(err)
	}
	defer root.Close()
	dirs := []string{"run", "etc/systemd/network", "etc/NetworkManager/system-connections"}
	for file := range want {
		if forIfupdown(file) {
			dirs = append(dirs, "etc/network")
			break
		}
	}
	return readGenerated(root, "", dirs...)
}

// lasting reports whether a generated file is kept over a boot.
func lasting(file string) bool { return strings.HasPrefix(file, "/etc/") }

// same reports whether two files mean the same; nil is none.
func (g *generated) same(other *generated) bool {
	if g == nil || other == nil {
		return g == other
	}
	return g.target == other.target && string(g.content) == string(other.content)
}

// differing returns the paths at which two sets differ, in order.
func differing(a, b map[string]*generated) (paths []string) {
	for path, file := range a {
		if !file.same(b[path]) {
			paths = append(paths, path)
		}
	}
	for path := range b {
		if a[path] == nil {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// plan is the way from what the renderers have to what they shall have.
type plan struct {
	paths      []string // that differ
	have, want map[string]*generated
	old, new   map[string]*link
	changed    []*link  // of new, in order
	made       []string // virtual interfaces that are made, or made anew
	gone       []string // virtual interfaces that are deleted before
}

func newPlan(have, want map[string]*generated) *plan {
	p := &plan{paths: differing(have, want), have: have, want: want, old: linksOf(have), new: linksOf(want)}
	touched := func(l *link, ext string) bool {
		return slices.ContainsFunc(p.paths, func(file string) bool {
			return strings.HasSuffix(file, ext) && slices.Contains(l.files, file)
		})
	}
	made := func(l *link) bool { // what makes it changes
		return touched(l, ".netdev") || l.renderer == byIfupdown && touched(l, "")
	}
	for _, id := range idsOf(p.new) {
		l := p.new[id]
		if touched(l, "") || p.old[id] != nil && touched(p.old[id], "") {
			p.changed = append(p.changed, l)
		}
		if l.virtual != "" && (p.old[id] == nil || p.old[id].virtual == "" || made(l)) {
			p.made = append(p.made, l.virtual)
		}
	}
	for _, id := range idsOf(p.old) {
		l := p.old[id]
		if l.virtual != "" && (p.new[id] == nil || p.new[id].virtual != l.virtual || made(l)) {
			p.gone = append(p.gone, l.virtual)
		}
	}
	return p
}

func idsOf(links map[string]*link) []string { return slices.Sorted(maps.Keys(links)) }

// names are the interfaces whose configuration changes, as the configuration calls them.
func (p *plan) names() []string {
	var list []string
	for _, l := range p.changed {
		list = append(list, l.id)
	}
	for _, id := range idsOf(p.old) {
		if p.new[id] == nil {
			list = append(list, id)
		}
	}
	return list
}

// touches reports whether a file changes for which a test holds.
func (p *plan) touches(test func(file string) bool) bool { return slices.ContainsFunc(p.paths, test) }

func forUdev(file string) bool { return strings.HasPrefix(file, "/run/udev/") }

// makesByNetworkd reports whether systemd-networkd makes a virtual interface.
func (p *plan) makesByNetworkd() bool {
	for _, l := range p.new {
		if l.renderer == byNetworkd && l.virtual != "" && slices.Contains(p.made, l.virtual) {
			return true
		}
	}
	return false
}

// renderers are who is concerned.
func (p *plan) renderers() string {
	var list []string
	if p.touches(forNetworkd) {
		list = append(list, byNetworkd)
	}
	if p.touches(forNetworkManager) {
		list = append(list, byNetworkManager)
	}
	return strings.Join(list, " and ")
}

// supported returns an error about what is not applied here. A file of it is a good one all the same.
func (p *plan) supported() error {
	for _, file := range p.paths {
		name := path.Base(file)
		what := ""
		switch {
		case strings.HasPrefix(name, "netplan-wpa-") || strings.HasPrefix(name, "wpa-"):
			what = "wifis and auth"
		case strings.HasPrefix(name, "netplan-ovs-") && name != "netplan-ovs-cleanup.service":
			what = "openvswitch"
		case strings.HasPrefix(name, "netplan-sriov"), strings.HasPrefix(name, "netplan-regdom"):
			what = "SR-IOV and regulatory domains"
		}
		if what != "" {
			return fault.On(strings.TrimSuffix(name, path.Ext(name)), fault.Unsupported("%s: this agent does not apply it", what))
		}
	}
	return nil
}

// applying is one call of netplan.apply.
type applying struct {
	room  *Room
	call  *builtins.Call
	began time.Time
	out   *pb.NetplanApplied
}

func (a *applying) saw(step, object, seen string) {
	a.out.Steps = append(a.out.Steps, &pb.NetplanStep{Step: step, Object: object, Seen: seen, At: time.Since(a.began).Seconds()})
}

func (r *Room) apply(ctx context.Context, call *builtins.Call, in *pb.NetplanApplyArgs) (*pb.NetplanApplied, error) {
	err := r.served()
	if err == nil && r.guest.Live {
		err = r.mayApply()
	}
	if err == nil {
		err = checkVerify(in.Verify)
	}
	if err != nil {
		return nil, err
	}
	limit := cmp.Or(time.Duration(in.Timeout)*time.Second, defaultTime)
	if limit > maxTime {
		return nil, fault.Invalid("timeout is %d s, at most %d are waited for", in.Timeout, int(maxTime.Seconds()))
	}
	if r.guest.Live && call.DryRun == nil {
		r.system.prepare(ctx)
	}
	set, err := r.checkedDocuments(ctx, call)
	if err != nil {
		return nil, err
	}
	want, err := r.generate(ctx, set)
	if err != nil {
		return nil, err
	}
	a := &applying{room: r, call: call, began: time.Now(), out: &pb.NetplanApplied{}}
	if !r.guest.Live {
		a.saw("renderer", "", "the tree is not booted: what its files say holds when it is")
		return a.out, nil
	}
	have, err := r.current(want)
	if err != nil {
		return nil, err
	}
	p := newPlan(have, want)
	if len(p.paths) == 0 {
		a.saw("renderer", "", "nothing changed, so none was called")
		if call.DryRun != nil {
			return a.out, nil
		}
		return a.out, a.until(ctx, limit, a.probes(in.Verify, [2]bool{}))
	}
	if err := p.supported(); err != nil {
		return nil, err
	}
	a.out.Changed, a.out.Links = true, p.names()
	told := &pb.Change{Op: "netplan.apply", Target: strings.Join(a.out.Links, " "), Action: "applied"}
	if call.DryRun != nil {
		return nil, call.DryRun.End(call, told) // whether the network works then nobody knows
	}
	if err := a.change(ctx, p, in.Verify, limit); err != nil {
		if lost := a.remember(set, err); lost != nil {
			return nil, errors.Join(err, lost)
		}
		return nil, err
	}
	call.ReportApplied(told)
	return a.out, nil
}

// remember has the files looked at again before the script commits: one that catches the error must not leave them behind, with
// a network that is not as they say.
func (a *applying) remember(set []*document, failed error) error {
	if a.call.Pending == nil {
		return nil
	}
	in := &pb.NetplanSettledArgs{Files: fingerprint(set), Error: failed.Error()}
	return a.call.BeforeCommit(builtins.Pending{Action: builtins.Action{Op: settledRow, Args: in, Target: "netplan"}, Outlives: true})
}

// settled returns an error while the files are those whose apply failed, and not what the renderers have.
func (r *Room) settled(ctx context.Context, call *builtins.Call, in *pb.NetplanSettledArgs) (*pb.Nothing, error) {
	set, err := documents(ctx, r.guest.Of(call))
	if err != nil || !bytes.Equal(fingerprint(set), in.Files) {
		return &pb.Nothing{}, err
	}
	want, err := r.generate(ctx, set)
	if err != nil {
		return nil, err
	}
	have, err := r.current(want)
	if err != nil || len(differing(have, want)) == 0 {
		return &pb.Nothing{}, err
	}
	return nil, &fault.Error{
		Err:  fault.Refuse("netplan.apply failed, and the files that it failed with are still there: %s", in.Error),
		Hint: "make them good with netplan.set or netplan.remove, and apply them again",
	}
}

func checkVerify(verify *pb.NetplanVerify) error {
	if verify.GetTcp() != "" {
		if host, port, err := net.SplitHostPort(verify.GetTcp()); err != nil || host == "" || port == "" {
			return fault.Invalid("verify.tcp is %q, and not host:port", verify.GetTcp())
		}
	}
	if strings.ContainsAny(verify.GetDns(), " \n\x00:/") {
		return fault.Invalid("verify.dns is %q, which is no name", verify.GetDns())
	}
	return nil
}

// change applies a plan and sees that the network works.
func (a *applying) change(ctx context.Context, p *plan, verify *pb.NetplanVerify, limit time.Duration) error {
	r := a.room
	n, err := r.look(ctx)
	if err != nil {
		return err
	}
	others := n.inquire(ctx, p)
	defer others.close()
	d := r.system.daemons
	defer d.use()()
	managed := make(chan error, 1)
	go func() { managed <- n.managed(ctx, d, p) }()
	answered, near := n.answering(ctx)
	if err := <-managed; err != nil {
		return err
	}
	if err := others.refused(); err != nil {
		return err
	}
	for _, g := range answered {
		a.saw("before", g.addr.String(), "the default gateway answers on "+n.name(g.index))
	}
	starts, err := startsNetworkd(ctx, d, p)
	if err != nil {
		return err
	}
	undo := n.undo(p, answered)
	undo.StartNetworkd = starts
	if undo.Checkpoint, err = guard(ctx, d, p, limit); err != nil {
		return err
	}
	defer func() { endCheckpoint(context.WithoutCancel(ctx), d, undo.Checkpoint) }()
	if a.call.Tx != nil {
		if err := a.call.Tx.Undo(ctx, undoRow, undo); err != nil {
			return err
		}
	}
	if err := others.refused(); err != nil { // who has answered meanwhile
		return err
	}
	acting, cancel := context.WithTimeoutCause(ctx, limit, errLate)
	err = r.act(acting, d, a.call, p, starts)
	cancel()
	if errors.Is(err, errLate) {
		err = fault.Wrapf(syscall.ENETUNREACH, "%v, after %v", err, limit)
	}
	if err != nil {
		return a.failed(err)
	}
	a.saw("renderer", p.renderers(), "it has taken the configuration")
	var families [2]bool
	for _, g := range answered {
		families[family(g.addr)] = true
	}
	checks := append(n.checks(r, d, p), a.probes(verify, families)...)
	if err := a.until(ctx, limit, checks); err != nil {
		return err
	}
	if err := others.end(ctx, near); err != nil {
		return a.failed(err)
	}
	return nil
}

// failed adds to an error what was seen until then.
func (a *applying) failed(err error) error {
	details := map[string]string{}
	var seen []string
	for _, s := range a.out.Steps {
		seen = append(seen, strings.TrimSpace(s.Step+" "+s.Object)+": "+s.Seen)
	}
	if len(seen) > 0 {
		details["seen"] = strings.Join(seen, "; ")
	}
	var named *fault.Error
	if errors.As(err, &named) && named.Details == nil {
		return &fault.Error{Object: named.Object, Err: named.Err, Hint: named.Hint, Details: details}
	}
	return &fault.Error{Err: err, Details: details}
}

// until waits until all checks hold, one after the other.
func (a *applying) until(ctx context.Context, limit time.Duration, checks []check) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errLate)
	defer cancel()
	kernel := watchKernel()
	defer kernel.close()
	for _, c := range checks {
		seen, err := wait(ctx, kernel, c)
		if err != nil {
			if errors.Is(err, errLate) {
				err = fault.Wrapf(syscall.ENETUNREACH, "%s, %.0f s after the network was changed", seen, time.Since(a.began).Seconds())
			}
			a.saw(c.step, c.object, seen)
			return a.failed(fault.On(strings.TrimSpace(c.step+" "+c.object), err))
		}
		a.saw(c.step, c.object, seen)
	}
	return nil
}

// probes are the checks of gateways and of what the caller wants. families are those of the gateways that answered before.
func (a *applying) probes(verify *pb.NetplanVerify, families [2]bool) (list []check) {
	for i, must := range families {
		if must {
			answers := func(ctx context.Context) (string, error) { return gatewayAnswers(ctx, &i) }
			list = append(list, check{"gateway", familyNames[i], answers})
		}
	}
	if verify.GetGateway() && families == [2]bool{} {
		list = append(list, check{"gateway", "", func(ctx context.Context) (string, error) { return gatewayAnswers(ctx, nil) }})
	}
	if address := verify.GetTcp(); address != "" {
		list = append(list, check{"tcp", address, func(ctx context.Context) (string, error) {
			if err := connects(ctx, address); err != nil {
				return "", err
			}
			return "it takes connections", nil
		}})
	}
	if name := verify.GetDns(); name != "" {
		list = append(list, check{"dns", name, func(ctx context.Context) (string, error) { return resolves(ctx, name) }})
	}
	return list
}

var familyNames = [2]string{"IPv4", "IPv6"}

// gatewayAnswers asks the default gateways that are used, those of a family, or of any.
func gatewayAnswers(ctx context.Context, which *int) (string, error) {
	list, err := gateways()
	if err != nil {
		return "", err
	}
	err = errors.New("there is no default gateway")
	for _, g := range list {
		if which != nil && family(g.addr) != *which {
			continue
		}
		who, asked := g.ask(ctx)
		if asked == nil {
			return g.addr.String() + " answers, " + who.String(), nil
		}
		err = asked
	}
	return "", err
}

// ask has a gateway answer.
func (g gateway) ask(ctx context.Context) (net.HardwareAddr, error) {
	q, err := g.question()
	if err != nil {
		return nil, err
	}
	return q.ask(ctx)
}

// question asks a gateway.
func (g gateway) question() (*question, error) {
	list, err := addresses()
	if err != nil {
		return nil, err
	}
	var from netip.Addr
	for _, a := range list {
		if a.index == g.index && a.prefix.Addr().Is4() == g.addr.Is4() && (!from.IsValid() || a.prefix.Contains(g.addr)) {
			from = a.prefix.Addr()
		}
	}
	return newQuestion(g.index, g.addr, from)
}
