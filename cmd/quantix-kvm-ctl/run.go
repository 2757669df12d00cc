package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// runFlags are the flags of run.
type runFlags struct {
	params, secrets, attach, modules, allow []string
	paramsFile, key, sha256, memory         string
	dryRun, noEvents, noResume              bool

	confirm  time.Duration
	confirms bool   // confirm is set
	then     string // the check on this host
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [flags] FILE.lua | NAME",
		Short: "run a script in the guest as one transaction",
		Long: `run sends a Lua script to the agent, which runs it as one transaction: everything that it does happens, or nothing. What the
script logs and how far it is appears on stderr while it runs; afterwards its changes appear there, and its result as JSON on
stdout (nothing where it returns nothing).

FILE.lua is a script of this host: an argument with a slash, or one that ends in .lua; "-" is standard input. NAME is one of
the guest's own, see scripts; run NAME --help lists its parameters, where the flags of the connection come before --help.

PARAMETERS
  --params FILE   a JSON object; "-" is standard input
  -p KEY=VALUE    one parameter, in place of that of the file: VALUE is JSON if it is JSON, else text. A number that JSON would
                  write in another way, such as 1.10, is text.
  -p KEY:=JSON    one parameter that must be JSON
  -p 'KEY="7"'    text in any case

SECRETS
  Secrets never appear in a log, a change or an error. They cannot be given as values here, where every user of this host could
  read them: --secret KEY asks for it at the terminal, or reads a
  line of standard input where that is none, KEY=@FILE reads a file (without the newline at its end), KEY=env:NAME
  reads an environment variable.

TIME
  --timeout bounds waiting for other scripts and running, in whole seconds; without it, what the script declares holds, else
  the agent's 300 seconds. A guest that has given no reply 10 seconds after that is not waited for. Ctrl-C cancels the script
  and waits until it is undone.

CONNECTION
  When the connection is lost, run connects again and asks for the same run: the agent gives its reply, waits for its end, or
  runs it now if it never got it, but no script twice. Where the agent or the guest stopped in the middle, the reply says so, and
  what is undone. When no connection comes about for a minute, run gives up, and whether the script ran is not known; under
  a --key of its own another run can ask.

CONFIRMATION
  With --confirm TIME, or where the script declares it, what it changed is taken back by itself unless "confirm" says in that
  time that it may stay: so a change that cuts the guest off does not last. The status line names the transaction and the
  deadline. A script that changed nothing needs no confirmation; --confirm 0 asks for none in any case.
  --then CMD runs a line of shell on this host when the changes are made, best a look at the guest from outside: where it ends
  with 0 they are confirmed, else, or when it does not end in time, they are taken back. Its output goes to stderr; it may use
  quantix-kvm-ctl, and finds the socket in $QUANTIX_SOCKET and the transaction in $QUANTIX_TRANSACTION. Where nothing was changed
  it does not run.

With --json stdout holds the whole RunScriptResponse.

EXIT STATUS
  0    committed, or a dry run without error, or applied and awaiting confirmation (never with --then)
  2    the command line makes no sense
  3    no connection, or no answer: whether the script ran, or with --then whether it was confirmed, is not known
  4    refused: nothing of it ran
  5    it failed, or the check of --then did, and everything it did is undone
  6    it failed, or the check of --then did, and not everything is undone: the list says what
  130  interrupted; the status line says what became of it`,
		Example: `  quantix-kvm-ctl run motd -p title='web server' -p 'lines=["managed by hand"]'
  quantix-kvm-ctl run ./user.lua -p name=deploy --secret password --dry-run
  quantix-kvm-ctl run ./firewall.lua --confirm 60s --then 'ssh -o ConnectTimeout=5 web true'
  quantix-kvm-ctl run ./site.lua --attach site.tar=./build/site.tar --key release-42 --timeout 2m`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(true, scriptNames),
		RunE: func(c *cobra.Command, args []string) error {
			f.confirms = c.Flags().Changed("confirm")
			request, err := a.scriptRequest(args[0], &f)
			if err != nil {
				return err
			}
			return a.runScript(c.Context(), args[0], request, &f)
		},
	}
	c.Flags().StringArrayVarP(&f.params, "param", "p", nil, "set a parameter, `key=value`; may be repeated")
	c.Flags().StringVar(&f.paramsFile, "params", "", "read parameters from a JSON `file`")
	c.Flags().StringArrayVar(&f.secrets, "secret", nil, "pass a secret: `key`, key=@file or key=env:NAME; may be repeated")
	c.Flags().StringArrayVar(&f.attach, "attach", nil, "send a file along, `name=file`; may be repeated")
	c.Flags().StringArrayVar(&f.modules, "module", nil, "send a module for require along, `name=file`; may be repeated")
	c.Flags().BoolVarP(&f.dryRun, "dry-run", "n", false, "show what would change, and change nothing")
	c.Flags().StringVar(&f.key, "key", "", "run once under this `name`: again, it gives the stored reply")
	c.Flags().StringArrayVar(&f.allow, "allow", nil, "allow only this `need` of those that the script declares; may be repeated")
	c.Flags().StringVar(&f.sha256, "expect-sha256", "", "refuse to run a script with another `digest`")
	c.Flags().StringVar(&f.memory, "memory", "", "limit the script's memory to this `size`, such as 32MiB")
	c.Flags().DurationVar(&f.confirm, "confirm", 0, "undo the changes unless they are confirmed within this `time`; 0: never")
	c.Flags().StringVar(&f.then, "then", "", "with --confirm: run this `line` of shell on this host, and confirm if it succeeds")
	c.Flags().BoolVar(&f.noResume, "no-resume", false, "fail when the connection is lost, rather than connect again and ask for the same run")
	c.Flags().BoolVar(&f.noEvents, "no-events", false, "show the log at the end instead of while it runs")
	if err := c.RegisterFlagCompletionFunc("param", a.completeParameter); err != nil {
		panic(err) // the flag is one above
	}
	if err := c.RegisterFlagCompletionFunc("allow", a.completeNeeds); err != nil {
		panic(err) // the flag is the one above
	}
	a.helpScripts(c)
	return c
}

// scriptRequest reads all that the command line names. Nothing is connected yet: a prompt may take its time.
func (a *app) scriptRequest(script string, f *runFlags) (*pb.RunScriptRequest, error) {
	request := &pb.RunScriptRequest{
		DryRun: f.dryRun, Key: f.key, Allow: f.allow, ExpectSha256: f.sha256, Events: !f.noEvents && !a.quiet,
		TimeoutSeconds: client.Seconds(a.timeout),
	}
	switch {
	case f.confirm < 0:
		return nil, usage("--confirm %v: it is negative", f.confirm)
	case f.then != "" && (f.confirm == 0 || f.dryRun):
		return nil, usage("--then goes with --confirm, and not with --dry-run")
	case f.confirms:
		request.ConfirmSeconds = proto.Uint32(client.Seconds(f.confirm))
	}
	if script == "-" && f.paramsFile == "-" {
		return nil, usage("the script and --params cannot both be standard input")
	}
	err := a.scriptSource(script, request)
	if err == nil {
		request.MemoryLimitBytes, err = parseSize(f.memory)
	}
	if err == nil {
		request.Params, err = a.input().Params(f.paramsFile, f.params)
	}
	if err == nil {
		request.Secrets, err = a.input().Secrets(f.secrets)
	}
	if err != nil {
		return nil, err
	}
	if request.Attachments, err = scriptreport.Attachments(f.attach); err != nil {
		return nil, err
	}
	request.Modules, err = scriptreport.Modules(f.modules)
	return request, err
}

func (a *app) input() scriptreport.Input { return scriptreport.Input{Stdin: a.stdin, Stderr: a.stderr} }

func (a *app) scriptSource(script string, request *pb.RunScriptRequest) (err error) {
	switch {
	case script == "-":
		request.Name = "stdin"
		request.Source, err = io.ReadAll(a.stdin)
	case isFile(script):
		request.Name = filepath.Base(script)
		request.Source, err = os.ReadFile(script)
	default:
		request.Name = script
		return nil
	}
	if err == nil && len(request.Source) == 0 {
		return fmt.Errorf("%s: the script is empty", script)
	}
	return err
}

func isFile(script string) bool {
	return strings.HasSuffix(script, ".lua") || strings.ContainsRune(script, '/') || strings.ContainsRune(script, os.PathSeparator)
}

// runScript runs a script, and its check where there is one.
func (a *app) runScript(ctx context.Context, script string, request *pb.RunScriptRequest, f *runFlags) error {
	var reply *pb.RunScriptResponse
	var path string
	var left time.Duration
	err := a.withCancelWait(ctx, func(s *session) (err error) {
		link := a.newLink(s, !f.noResume)
		defer link.Close()
		path = s.path
		if reply, err = a.askScript(s, link, script, request); reply.GetStatus() == awaitsConfirm && f.then != "" {
			left = timeLeft(s.ctx, link, reply, f.confirm)
		}
		return err
	})
	if err != nil || reply == nil {
		return err
	}
	switch {
	case reply.Status == awaitsConfirm && f.then != "":
		if err := a.settle(ctx, path, f.then, left, reply); err != nil {
			return err
		}
	case reply.Status == awaitsConfirm:
		a.note("to keep it: quantix-kvm-ctl confirm %s", reply.TransactionId)
	}
	if err := a.printResult(reply); err != nil {
		return err
	}
	return a.scriptOutcome(reply)
}

const awaitsConfirm = pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM

// timeLeft is how long a transaction awaits its confirmation from now on: the reply may be an older one. Where the agent does
// not say, it is as long as was asked for.
func timeLeft(ctx context.Context, link *client.Link, reply *pb.RunScriptResponse, asked time.Duration) (left time.Duration) {
	err := link.Do(ctx, func(ctx context.Context, c *client.Client) error {
		info, err := c.Transaction(ctx, reply.TransactionId)
		left = time.Duration(info.GetConfirmRemainingMs()) * time.Millisecond
		return err
	})
	if err != nil {
		return asked
	}
	return left
}

// askScript has a script run and prints what it did. The reply is nil where the agent refused the request as such.
func (a *app) askScript(
	s *session, link *client.Link, script string, request *pb.RunScriptRequest,
) (*pb.RunScriptResponse, error) {
	printer := a.printEvents(&s.events)
	reply, err := link.RunScript(s.ctx, request, cancelWait)
	printer.stop()
	if reply == nil || reply.Status == pb.ScriptStatus_SCRIPT_STATUS_UNSPECIFIED {
		return nil, err
	}
	if e := reply.Error; e != nil && request.Source != nil && script != "-" && e.Script == request.Name {
		e.Script = script // the path that the user knows
		e.Message = strings.TrimPrefix(e.Message, fmt.Sprintf("%s:%d: ", request.Name, e.Line))
	}
	if !a.quiet {
		printer.printMissedLog(reply)
		scriptreport.Changes(a.stderr, reply)
		scriptreport.Status(a.stderr, reply)
	}
	return reply, nil
}

func (a *app) printResult(reply *pb.RunScriptResponse) error {
	if a.json {
		return a.printJSON(reply)
	}
	if isNull(reply.Result) {
		return nil
	}
	return a.printPretty(reply.Result)
}

// units of --memory, the longest first.
var units = []struct {
	name  string
	bytes uint64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"B", 1},
}

// parseSize reads a number of bytes with a unit; "" is 0.
func parseSize(text string) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	digits, factor := text, uint64(1)
	for _, unit := range units {
		if rest, ok := strings.CutSuffix(text, unit.name); ok {
			digits, factor = strings.TrimSpace(rest), unit.bytes
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || n == 0 {
		return 0, usage("--memory %s: it is no size such as 32MiB", text)
	}
	return n * factor, nil
}
