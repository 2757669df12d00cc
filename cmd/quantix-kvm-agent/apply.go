package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/cmd/internal/human"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scripttest"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// applyFlags are the flags of apply.
type applyFlags struct {
	params, secrets, attach, modules []string
	paramsFile, lock, image          string
	dryRun, drift, json, quiet       bool
	timeout                          time.Duration
}

func applyCommand(f *flags) *cobra.Command {
	var a applyFlags
	c := &cobra.Command{
		Use:   "apply {--root DIR | --image FILE} SCRIPT...",
		Short: "run scripts as transactions on a tree or image that is not booted, without a daemon",
		Long: `apply runs scripts on the tree below --root, as on an image that is mounted there, one after another and each as one
transaction: all of it happens, or nothing does. The first one that fails ends apply; those before it stay. What a script
that failed had changed is as it was: content, owners, modes, times and links.

SCRIPT is a file, where it has a slash or ends in .lua, or the name of a script of the tree or of the bundled ones.

Commands of scripts run in the tree, with a /dev and /proc of their own that are gone with them; that needs root. Services are
enabled by links, users are made in the tree's files. What needs a running guest fails and says so.

apply keeps its journal outside of the tree, in --state: unless that is given, in a directory for the tree's path below
/var/lib/quantix-kvm-apply, for others than root below quantix-kvm-apply in $XDG_STATE_HOME or ~/.local/state. After a crash the
next apply on the same tree, with the same --state, first takes back what was unfinished.

PARAMETERS
  -p KEY=VALUE         for each script that declares KEY, and for those that declare nothing. VALUE is JSON if it is JSON, else
                       text. A number that JSON would write in another way, such as 1.10, is text.
  -p SCRIPT.KEY=VALUE  for that script alone, by the name that it declares or its file's name without .lua
  --params FILE        a JSON object of both kinds; "-" is standard input
  --secret KEY         as with quantix-kvm-ctl run: KEY=@FILE, KEY=env:NAME, or KEY alone, which asks

IMAGES
  --image FILE mounts an image, raw or qcow2, and works on its tree: on the one file system that has an os-release, with what its
  fstab has below it. Nothing else sees the mounts, and they end with apply, however it ends. That needs root, and for qcow2
  qemu-storage-daemon. An image that is in use, or whose file systems were not unmounted, is refused. With --dry-run and --drift
  the image is read, and not changed by a byte. Volumes of LVM are found where each lies in one piece, without the tools of LVM.
  LUKS and RAID are not supported: open them, mount what is in them, and give --root.

REPRODUCIBLE IMAGES
  --lock FILE writes which scripts ran, by their SHA-256, and with which parameters. Where the file is there already, and says
  anything else, nothing is run. Where the environment has SOURCE_DATE_EPOCH, what apply changed carries no later time.

EXIT STATUS
  0  all scripts are committed, or would be
  1  something else failed: the tree cannot be used, a file cannot be read, --lock says otherwise
  4  a script was refused, and nothing of it ran
  5  a script failed, and everything it did is undone
  6  a script failed, and not everything is undone: the list says what
  7  with --drift: something is not as scripts want it; commands whose effect cannot be foretold do not count`,
		Example: `  quantix-kvm-agent apply --root /mnt/image sshd-hardening ./site.lua -p port=8443
  quantix-kvm-agent apply --image disk.qcow2 ./site.lua --drift --json || alert
  quantix-kvm-agent apply --root ./tree ./site.lua -p site.title='"7"' --lock site.lock --json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			in := scriptreport.Input{Stdin: os.Stdin, Stderr: c.ErrOrStderr()}
			return applyScripts(c.Context(), in, c.OutOrStdout(), *f, a, args)
		},
	}
	moduleFlag(c, &a.modules)
	c.Flags().StringArrayVarP(&a.params, "param", "p", nil, "set a parameter, `key=value` or script.key=value; may be repeated")
	c.Flags().StringVar(&a.paramsFile, "params", "", "read parameters from a JSON `file`")
	c.Flags().StringArrayVar(&a.secrets, "secret", nil, "pass a secret: `key`, key=@file or key=env:NAME; may be repeated")
	c.Flags().StringArrayVar(&a.attach, "attach", nil, "send a file along with each script, `name=file`; may be repeated")
	c.Flags().BoolVarP(&a.dryRun, "dry-run", "n", false, "show what would change, and change nothing")
	c.Flags().BoolVar(&a.drift, "drift", false, "as --dry-run, with an exit status that says whether anything would change")
	c.Flags().StringVar(&a.image, "image", "", "work on the tree of a disk image, a raw or qcow2 `file`")
	c.Flags().StringVar(&a.lock, "lock", "", "record scripts and parameters in a `file`, or hold them against it")
	c.Flags().DurationVar(&a.timeout, "timeout", 0, "bound each script to this `time` (default what it declares, else 300 s)")
	c.Flags().BoolVar(&a.json, "json", false, "print a report of all scripts as JSON")
	c.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "print errors alone")
	return c
}

// exitError is an error with the exit status of the program.
type exitError struct {
	error
	code int
}

func (e *exitError) Unwrap() error { return e.error }

// wanted is a script that is to be applied.
type wanted struct {
	argument string
	name     string // that it declares, else that of its file
	declared *pb.ScriptDeclaration
	request  *pb.RunScriptRequest
}

// applied is the report of one script.
type applied struct {
	Script string          `json:"script"`
	SHA256 string          `json:"sha256"`
	Drift  *bool           `json:"drift,omitempty"` // of a dry run
	Reply  json.RawMessage `json:"reply"`
}

// applyScripts runs scripts on the tree below f.root, or on an image.
func applyScripts(
	ctx context.Context, in scriptreport.Input, out io.Writer, f flags, a applyFlags, arguments []string,
) (err error) {
	a.dryRun = a.dryRun || a.drift
	if a.image != "" {
		return applyImage(ctx, in, out, f, a, arguments)
	}
	if f.root == rootDir {
		return errors.New("apply works on a tree: give its --root or --image; " +
			"in a guest that runs, an agent runs scripts for its host")
	}
	if f, err = f.forTree(); err != nil {
		return err
	}
	unlock, err := f.takeState(lockWait)
	if err != nil {
		return err
	}
	defer unlock()
	defer func() { err = errors.Join(err, f.forget(err)) }()
	return applyTree(ctx, in, out, f, a, arguments, []string{f.root})
}

// applyTree runs scripts on the tree below f.root, which has the file systems at mounts.
func applyTree(
	ctx context.Context, in scriptreport.Input, out io.Writer, f flags, a applyFlags, arguments, mounts []string,
) (err error) {
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	found := library(f.root, config.Default().Script.Source)
	list, err := wantedScripts(ctx, pool, found, in, a, arguments)
	if err != nil {
		return err
	}
	lock, err := openLock(a.lock, list)
	if err != nil {
		return err
	}
	latest, err := latestTime(os.Getenv("SOURCE_DATE_EPOCH"))
	if err == nil && !a.dryRun {
		err = lock.check()
	}
	if err != nil {
		return err
	}
	agentCore, err := openTree(f, pool, found)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agentCore.Close()) }()
	if err := recoverTree(ctx, agentCore, in.Stderr); err != nil {
		return err
	}
	report := applyReport{Root: f.root, Image: a.image}
	differ := 0
	for _, w := range list {
		reply, err := w.run(ctx, agentCore)
		if err != nil {
			return err
		}
		if !a.quiet {
			tellApplied(in.Stderr, w, reply)
		}
		line, err := w.report(reply, a.dryRun)
		if err != nil {
			return err
		}
		report.Scripts = append(report.Scripts, line)
		if code := scriptreport.ExitCode(reply); code != 0 {
			err = &exitError{errors.New(w.argument + ": " + scriptreport.ErrorText(reply.Error)), code}
			return errors.Join(err, report.print(out, a.json))
		}
		if line.Drift != nil && *line.Drift {
			differ++
		}
	}
	if !a.dryRun {
		err := lock.write()
		for _, dir := range mounts {
			err = errors.Join(err, clampTimes(dir, latest))
		}
		if err != nil {
			return err
		}
	}
	if err := report.print(out, a.json); err != nil || !a.drift || differ == 0 {
		return err
	}
	return &exitError{fmt.Errorf("not as wanted: %s of %d", human.Plural(differ, "script"), len(list)), scriptreport.DriftExit}
}

// forTree returns the flags for a tree that is not booted: its state is outside of it, by the name of the tree.
func (f flags) forTree() (flags, error) {
	root, err := filepath.Abs(f.root)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		return f, err
	}
	if info, err := os.Stat(root); err != nil || !info.IsDir() {
		return f, fmt.Errorf("%s is not a directory", root)
	}
	f.root = root
	if f.state, err = f.stateOf(root); err != nil {
		return f, err
	}
	if len(f.below(f.state)) > 0 {
		return f, fmt.Errorf("--state %s lies in the tree; it must be outside", f.state)
	}
	return f, nil
}

// openTree opens the core of an agent on a tree. The tree may get another machine-id meanwhile, and belongs to no boot.
func openTree(f flags, pool *sandbox.Pool, found *script.Library) (*core.Core, error) {
	if err := os.MkdirAll(f.state, 0o700); err != nil {
		return nil, err
	}
	tree := func() string { return treeID }
	agentCore, err := core.Open(core.Config{
		Root: f.root, State: f.state, Rooms: roomConfig(f, config.Default()), Pool: pool, Library: found,
		MachineID: tree, BootID: tree, LockWait: lockWait,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.root, err)
	}
	return agentCore, nil
}

// recoverTree takes back what an apply left that did not end.
func recoverTree(ctx context.Context, agentCore *core.Core, w io.Writer) error {
	events, err := agentCore.Recover(ctx)
	for _, e := range events {
		fmt.Fprintf(w, "an earlier apply: %s\n", human.Printable(e.Message))
	}
	if err != nil {
		return err
	}
	if waits := agentCore.Journal.Status(); waits.Open != nil {
		return fmt.Errorf("transaction %s of an earlier apply cannot be taken back yet", waits.Open.TransactionId)
	}
	return nil
}

// wantedScripts reads scripts, and gives each its parameters.
func wantedScripts(
	ctx context.Context, pool *sandbox.Pool, found *script.Library, in scriptreport.Input, a applyFlags, arguments []string,
) (list []*wanted, err error) {
	modules, err := scriptreport.Modules(a.modules)
	if err != nil {
		return nil, err
	}
	params, err := in.Params(a.paramsFile, a.params)
	if err != nil {
		return nil, err
	}
	secrets, err := in.Secrets(a.secrets)
	if err != nil {
		return nil, err
	}
	attachments, err := scriptreport.Attachments(a.attach)
	if err != nil {
		return nil, err
	}
	for _, argument := range arguments {
		w := &wanted{argument: argument, request: &pb.RunScriptRequest{
			ConfirmSeconds: new(uint32), // nobody can be cut off from a tree
			DryRun:         a.dryRun, Modules: modules, Secrets: map[string]string{}, Attachments: attachments,
			TimeoutSeconds: uint32((a.timeout + time.Second - 1) / time.Second),
		}}
		if err := w.read(ctx, pool, found); err != nil {
			return nil, fmt.Errorf("%s: %w", argument, err)
		}
		list = append(list, w)
	}
	return list, giveParams(list, params.AsMap(), secrets)
}

// read reads the source and what it declares.
func (w *wanted) read(ctx context.Context, pool *sandbox.Pool, found *script.Library) (err error) {
	if strings.HasSuffix(w.argument, ".lua") || strings.ContainsRune(w.argument, os.PathSeparator) {
		w.request.Source, err = os.ReadFile(w.argument)
		w.request.Name = filepath.Base(w.argument)
	} else {
		var s script.Script
		s, err = found.Find(w.argument)
		w.request.Source, w.request.Name = s.Source, s.Name+".lua"
	}
	if err != nil {
		return err
	}
	w.name = strings.TrimSuffix(w.request.Name, ".lua")
	outcome := look(ctx, pool, &pb.RunnerStart{
		Name: w.request.Name, Source: w.request.Source, Describe: true, Modules: w.request.Modules,
		Functions: scripttest.Functions(), Unsupported: all.Unsupported,
	})
	if e := outcome.Error; e != nil {
		return errors.New(scriptreport.ErrorText(e))
	}
	if w.declared = outcome.Declaration; w.declared.GetName() != "" {
		w.name = w.declared.Name
	}
	return nil
}

// declares reports whether a script takes a parameter.
func (w *wanted) declares(key string) bool {
	return w.declared == nil || slices.ContainsFunc(w.declared.Params.GetFields(), func(f *pb.LuaField) bool { return string(f.Key) == key })
}

// giveParams gives each script the parameters and secrets that are meant for it. One that no script takes is an error.
func giveParams(list []*wanted, params map[string]any, secrets map[string]string) (err error) {
	own := make([]map[string]any, len(list))
	give := func(key string, to func(i int, key string)) error {
		taken := false
		for i, w := range list {
			mine, named := strings.CutPrefix(key, w.name+".")
			if !named {
				mine = key
			}
			if named || w.declares(mine) {
				to(i, mine)
				taken = true
			}
		}
		if !taken {
			return fmt.Errorf("no script has a parameter %s", key)
		}
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(params)) {
		err = errors.Join(err, give(key, func(i int, mine string) {
			if own[i] == nil {
				own[i] = map[string]any{}
			}
			own[i][mine] = params[key]
		}))
	}
	for _, key := range slices.Sorted(maps.Keys(secrets)) {
		err = errors.Join(err, give(key, func(i int, mine string) { list[i].request.Secrets[mine] = secrets[key] }))
	}
	for i, values := range own {
		if values != nil {
			var e error
			list[i].request.Params, e = structpb.NewStruct(values)
			err = errors.Join(err, e)
		}
	}
	return err
}

// run runs a script.
func (w *wanted) run(ctx context.Context, agentCore *core.Core) (*pb.RunScriptResponse, error) {
	reply, err := execute[*pb.RunScriptResponse](ctx, agentCore, w.request)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.argument, err)
	}
	if e := reply.Error; e != nil && e.Script == w.request.Name {
		e.Message = strings.TrimPrefix(e.Message, fmt.Sprintf("%s:%d: ", w.request.Name, e.Line))
	}
	return reply, nil
}

// execute runs a request in this process.
func execute[R proto.Message](ctx context.Context, agentCore *core.Core, request proto.Message) (reply R, err error) {
	op := agentCore.Calls.Native(request)
	if op == nil {
		return reply, errors.New("scripts are turned off")
	}
	answer, err := agentCore.Calls.Execute(ctx, &builtins.Call{ID: rand.Text()}, op, request)
	if err != nil {
		return reply, err
	}
	reply, ok := answer.(R)
	if !ok {
		return reply, fmt.Errorf("the reply is a %T", answer)
	}
	return reply, nil
}

// digest returns the SHA-256 of the source.
func (w *wanted) digest() string {
	sum := sha256.Sum256(w.request.Source)
	return hex.EncodeToString(sum[:])
}

func (w *wanted) report(reply *pb.RunScriptResponse, dryRun bool) (applied, error) {
	text, err := scriptreport.JSON(reply)
	a := applied{Script: w.name, SHA256: w.digest(), Reply: text}
	if would, _ := scriptreport.Foretold(reply.Changes); dryRun {
		drift := would > 0
		a.Drift = &drift
	}
	return a, err
}

// tellApplied prints what became of a script.
func tellApplied(w io.Writer, s *wanted, reply *pb.RunScriptResponse) {
	fmt.Fprintf(w, "%s\n", human.PrintableLine(s.name))
	for _, line := range reply.Log {
		scriptreport.Log(w, line)
	}
	scriptreport.Changes(w, reply)
	scriptreport.Status(w, reply)
}

// applyReport is what --json prints.
type applyReport struct {
	Root    string    `json:"root"`
	Image   string    `json:"image,omitempty"`
	Scripts []applied `json:"scripts"`
}

// print prints the report of all scripts as one line of JSON, where it was asked for.
func (r applyReport) print(out io.Writer, asked bool) error {
	if !asked {
		return nil
	}
	if r.Image != "" {
		r.Root = "/" // where it was mounted says nothing to anybody
	}
	return json.NewEncoder(out).Encode(r)
}
