package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// runFlags are the flags of run.
type runFlags struct {
	params, secrets, attach, allow, modules []string
	paramsFile, key, sha256                 string
	timeout                                 time.Duration
	memory                                  uint64
	dryRun                                  bool
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run FILE.lua | NAME",
		Short: "run a script as one transaction",
		Long: `Runs a script in the guest: a file of this machine, or a script that the guest has by that name. The result goes to
standard output as JSON; the log, the changes and the status go to standard error.

A value of -p that is JSON is taken as such, anything else as text. A secret is read from a file (NAME=@FILE), from the
environment (NAME=env:VARIABLE), or asked for on the terminal (NAME alone).

` + exitHelp,
		Example: "  quantix-kvm-ctl run motd -p title='Welcome'\n  quantix-kvm-ctl run setup.lua --params site.json --secret password=env:PW --attach key.pem=./key.pem",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, list []string) error {
			request, err := a.runRequest(list[0], f)
			if err != nil {
				return err
			}
			a.event = a.watchScript
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error { return a.runScript(ctx, c, request) })
		},
	}
	fl := c.Flags()
	fl.StringArrayVarP(&f.params, "param", "p", nil, "a parameter, `NAME=VALUE` (again for more)")
	fl.StringVar(&f.paramsFile, "params", "", "parameters from a JSON `file`; - is standard input")
	fl.StringArrayVar(&f.secrets, "secret", nil, "a secret, `NAME[=@FILE|=env:VARIABLE]`")
	fl.StringArrayVar(&f.attach, "attach", nil, "send a file along, `NAME=FILE`")
	fl.StringArrayVar(&f.modules, "module", nil, "send a Lua module along, `NAME=FILE`")
	fl.StringArrayVar(&f.allow, "allow", nil, "what the script may use at most")
	fl.StringVar(&f.key, "key", "", "names this run, so that a repeated one does not run twice")
	fl.StringVar(&f.sha256, "expect-sha256", "", "run nothing but the script with this digest")
	fl.DurationVar(&f.timeout, "timeout", 0, "time for waiting and running; 0: as declared, or the agent's limit")
	fl.Uint64Var(&f.memory, "memory", 0, "memory limit of the script in `bytes`; 0: the agent's")
	fl.BoolVar(&f.dryRun, "dry-run", false, "change nothing, tell what would change")
	return c
}

// runRequest makes the request from the command line.
func (a *app) runRequest(script string, f runFlags) (*pb.RunScriptRequest, error) {
	request := &pb.RunScriptRequest{
		Key: f.key, ExpectSha256: f.sha256, DryRun: f.dryRun, Allow: f.allow, MemoryLimitBytes: f.memory, Events: !a.quiet,
		TimeoutSeconds: uint32((f.timeout + time.Second - 1) / time.Second),
		Secrets:        map[string]string{}, Modules: map[string][]byte{},
	}
	var err error
	if strings.HasSuffix(script, ".lua") || strings.ContainsRune(script, filepath.Separator) {
		if request.Source, err = os.ReadFile(script); err != nil {
			return nil, err
		}
		if len(request.Source) == 0 {
			return nil, fmt.Errorf("%s is empty", script)
		}
		request.Name = filepath.Base(script)
	} else {
		request.Name = script
	}
	if request.Params, err = a.paramsOf(f); err != nil {
		return nil, usageError{err}
	}
	for _, s := range f.secrets {
		name, value, err := a.secret(s)
		if err != nil {
			return nil, err
		}
		request.Secrets[name] = value
	}
	for _, s := range f.attach {
		name, data, err := fileArgument(s)
		if err != nil {
			return nil, err
		}
		request.Attachments = append(request.Attachments, &pb.Attachment{Name: name, Data: data})
	}
	for _, s := range f.modules {
		name, data, err := fileArgument(s)
		if err != nil {
			return nil, err
		}
		request.Modules[name] = data
	}
	return request, nil
}

func (a *app) paramsOf(f runFlags) (*structpb.Struct, error) {
	params := map[string]any{}
	if f.paramsFile != "" {
		text, err := a.readFile(f.paramsFile)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &params); err != nil {
			return nil, fmt.Errorf("%s: %w", f.paramsFile, err)
		}
	}
	for _, p := range f.params {
		name, text, ok := strings.Cut(p, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("-p %q is not NAME=VALUE", p)
		}
		var value any
		if json.Unmarshal([]byte(text), &value) != nil {
			value = text
		}
		params[name] = value
	}
	if len(params) == 0 {
		return nil, nil
	}
	return structpb.NewStruct(params)
}

func (a *app) readFile(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(a.in)
	}
	return os.ReadFile(path)
}

func fileArgument(s string) (name string, data []byte, err error) {
	name, path, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return "", nil, usageError{fmt.Errorf("%q is not NAME=FILE", s)}
	}
	data, err = os.ReadFile(path)
	return name, data, err
}

func (a *app) secret(s string) (name, value string, err error) {
	name, from, given := strings.Cut(s, "=")
	switch path, isFile := strings.CutPrefix(from, "@"); {
	case name == "":
		return "", "", usageError{fmt.Errorf("--secret %q has no name", s)}
	case !given:
		value, err = a.prompt(name)
	case isFile:
		var text []byte
		text, err = os.ReadFile(path)
		value = strings.TrimSuffix(string(text), "\n")
	case strings.HasPrefix(from, "env:"):
		var found bool
		if value, found = os.LookupEnv(from[4:]); !found {
			err = fmt.Errorf("secret %s: the environment has no %s", name, from[4:])
		}
	default:
		// A value on the command line would be seen by everybody who lists processes.
		err = usageError{fmt.Errorf("--secret %s: give NAME=@FILE, NAME=env:VARIABLE, or NAME to be asked", name)}
	}
	return name, value, err
}

func (a *app) prompt(name string) (string, error) {
	if f, ok := a.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(a.err, "%s: ", name)
		text, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.err)
		return string(text), err
	}
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// watchScript shows what a script says while it runs.
func (a *app) watchScript(_ string, event proto.Message) {
	e, ok := event.(*pb.ScriptEvent)
	if !ok {
		return
	}
	if e.Dropped > 0 {
		a.note("… %d lines came too fast to be shown", e.Dropped)
	}
	switch {
	case e.Log != nil:
		a.note("%-5s %s", e.Log.Level, e.Log.Message)
	case e.Progress != nil:
		a.note("%3.0f %%  %s", *e.Progress*100, e.Step)
	case e.Step != "":
		a.note("       %s", e.Step)
	}
}

func (a *app) runScript(ctx context.Context, c *client.Client, request *pb.RunScriptRequest) error {
	reply, err := ask[*pb.RunScriptResponse](ctx, c, request)
	if err != nil {
		return err
	}
	if a.json {
		if err := a.showJSON(reply); err != nil {
			return err
		}
		return scriptStatus(reply, "")
	}
	for _, change := range reply.Changes {
		a.showChange(change)
	}
	if !request.DryRun && reply.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED && len(reply.Changes) == 0 {
		a.note("nothing to change")
	}
	if reply.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED && reply.Result != nil && !isNull(reply.Result) {
		text, err := protojson.Marshal(reply.Result)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := json.Indent(&b, text, "", "  "); err != nil {
			return err
		}
		fmt.Fprintln(a.out, &b)
	}
	summary := statusWord(reply.Status)
	if reply.Replayed {
		summary += " (the stored reply of an earlier run)"
	}
	a.note("%s: %d changes, %d calls, %d ms", summary, len(reply.Changes), reply.Stats.GetCalls(), reply.Stats.GetDurationMs())
	return scriptStatus(reply, a.scriptFailure(reply))
}

func isNull(v *structpb.Value) bool {
	_, null := v.Kind.(*structpb.Value_NullValue)
	return null
}

func statusWord(s pb.ScriptStatus) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(s.String(), "SCRIPT_STATUS_"), "_", " "))
}

// changeMarks say how a change stands.
var changeMarks = map[pb.ChangeState]string{
	pb.ChangeState_CHANGE_STATE_APPLIED: "changed", pb.ChangeState_CHANGE_STATE_UNDONE: "undone", pb.ChangeState_CHANGE_STATE_NOT_UNDONE: "NOT UNDONE",
	pb.ChangeState_CHANGE_STATE_WOULD: "would change", pb.ChangeState_CHANGE_STATE_UNKNOWN: "unknown",
}

func (a *app) showChange(c *pb.Change) {
	a.note("%-12s %s %s (%s)", changeMarks[c.State], c.Action, c.Target, c.Op)
	if c.Diff != "" {
		for line := range strings.Lines(c.Diff) {
			a.note("    %s", strings.TrimSuffix(line, "\n"))
		}
	}
	if c.DiffTruncated {
		a.note("    … the diff is longer")
	}
}

// scriptFailure tells why a script did not end well.
func (a *app) scriptFailure(reply *pb.RunScriptResponse) string {
	e := reply.Error
	if e == nil {
		return ""
	}
	text := e.Kind + ": " + e.Message
	if e.Script != "" && e.Line > 0 && !strings.Contains(e.Message, fmt.Sprintf("%s:%d", e.Script, e.Line)) {
		text = fmt.Sprintf("%s:%d: %s", e.Script, e.Line, text)
	}
	if e.Limit != "" {
		text += " (limit " + e.Limit + ")"
	}
	if e.Traceback != "" {
		text += "\n" + strings.TrimRight(e.Traceback, "\n")
	}
	if e.Hint != "" {
		text += "\nhint: " + e.Hint
	}
	return text
}

// scriptStatus gives the exit status of a run.
func scriptStatus(reply *pb.RunScriptResponse, text string) error {
	status := exitFailed
	switch reply.Status {
	case pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM:
		return nil
	case pb.ScriptStatus_SCRIPT_STATUS_REFUSED:
		status = exitRefused
	case pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK:
		status = exitRolledBack
	case pb.ScriptStatus_SCRIPT_STATUS_PARTIAL, pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED:
		status = exitPartial
	}
	return &exitError{status, text}
}

func (a *app) scriptsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "scripts", Short: "list the scripts that the guest can run by name", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error {
				reply, err := ask[*pb.ListScriptsResponse](ctx, c, &pb.ListScriptsRequest{})
				if err != nil {
					return err
				}
				return a.show(reply, func(w io.Writer) {
					fmt.Fprintln(w, "NAME\tVERSION\tDESCRIPTION\tSOURCE")
					for _, s := range reply.Scripts {
						what := s.Description
						if s.Error != "" {
							what = "cannot run: " + s.Error
						}
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Name, s.Version, what, s.SourcePath)
					}
				})
			})
		},
	}
}

func (a *app) txCommand() *cobra.Command {
	c := &cobra.Command{Use: "tx", Short: "look at transactions", Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(
		&cobra.Command{
			Use: "list", Short: "list the stored transactions, newest first", Args: args(cobra.NoArgs),
			RunE: func(c *cobra.Command, _ []string) error {
				return a.with(c.Context(), a.txList)
			},
		},
		&cobra.Command{
			Use: "show ID", Short: "show one transaction with its changes", Args: args(cobra.ExactArgs(1)),
			RunE: func(c *cobra.Command, list []string) error {
				return a.with(c.Context(), func(ctx context.Context, c *client.Client) error { return a.txShow(ctx, c, list[0]) })
			},
		},
	)
	return c
}

func (a *app) txList(ctx context.Context, c *client.Client) error {
	all := &pb.TransactionsResponse{}
	for token := ""; ; {
		reply, err := ask[*pb.TransactionsResponse](ctx, c, &pb.TransactionsRequest{ContinuationToken: token})
		if err != nil {
			return err
		}
		all.Transactions = append(all.Transactions, reply.Transactions...)
		if token = reply.ContinuationToken; token == "" {
			break
		}
	}
	return a.show(all, func(w io.Writer) {
		fmt.Fprintln(w, "ID\tSTATUS\tSTARTED\tSCRIPT\tCHANGES")
		for _, t := range all.Transactions {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", t.TransactionId, txState(t), t.Started.AsTime().Local().Format(time.DateTime), t.Script.GetName(), t.Changes)
		}
	})
}

// txState is the status, or what goes on where there is none yet.
func txState(t *pb.TransactionInfo) string {
	if t.Status == pb.ScriptStatus_SCRIPT_STATUS_UNSPECIFIED || t.Phase == "quarantined" {
		return strings.ReplaceAll(t.Phase, "_", " ")
	}
	return statusWord(t.Status)
}

func (a *app) txShow(ctx context.Context, c *client.Client, id string) error {
	reply, err := ask[*pb.TransactionsResponse](ctx, c, &pb.TransactionsRequest{TransactionId: id})
	if err != nil {
		return err
	}
	if len(reply.Transactions) != 1 {
		return fault.Because(os.ErrNotExist, "no transaction %s", id)
	}
	t := reply.Transactions[0]
	if a.json {
		return a.showJSON(t)
	}
	a.quiet = false
	fmt.Fprintf(a.out, "%s: %s, script %s, started %s\n", t.TransactionId, txState(t), t.Script.GetName(), t.Started.AsTime().Local().Format(time.DateTime))
	if t.Reply != nil {
		for _, change := range t.Reply.Changes {
			a.showChange(change)
		}
		if text := a.scriptFailure(t.Reply); text != "" {
			fmt.Fprintln(a.out, text)
		}
	}
	return nil
}
