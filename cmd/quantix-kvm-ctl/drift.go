package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) driftCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "drift SCRIPT...",
		Short: "show what in the guest is no longer as scripts want it",
		Long: `drift runs scripts as dry runs, one after another, and shows what each would change: what is no longer as it was wanted.
Nothing is changed. Scripts are named as with run, a file of this host or one of the guest's own.

-p KEY=VALUE is for all of them, -p SCRIPT.KEY=VALUE for one, by its name without directory and .lua. Give them as when the
script was run.

Commands whose effect cannot be foretold are listed; they count neither as drift nor as its absence.

With --json stdout holds a list of objects with script, drift (true or false) and the whole RunScriptResponse as reply. A script
that failed is the last one in it.

EXIT STATUS
  0  all is as wanted, as far as it can be foretold
  7  something is not
  3, 4, 5  as with run, for the first script that fails in its dry run; those behind it are not asked`,
		Example: `  quantix-kvm-ctl drift sshd-hardening ./site.lua -p site.port=8443
  quantix-kvm-ctl drift motd -p title=web --json || alert`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(true, scriptNames),
		RunE: func(c *cobra.Command, args []string) error {
			requests, err := a.driftRequests(args, &f)
			if err != nil {
				return err
			}
			return a.withCancelWait(c.Context(), func(s *session) error {
				link := a.newLink(s, true)
				defer link.Close()
				return a.drift(s, link, args, requests)
			})
		},
	}
	c.Flags().StringArrayVarP(&f.params, "param", "p", nil, "set a parameter, `key=value` or script.key=value; may be repeated")
	c.Flags().StringVar(&f.paramsFile, "params", "", "read parameters from a JSON `file`")
	c.Flags().StringArrayVar(&f.secrets, "secret", nil, "pass a secret to all scripts: `key`, key=@file or key=env:NAME; may be repeated")
	c.Flags().StringArrayVar(&f.modules, "module", nil, "send a module for require along, `name=file`; may be repeated")
	return c
}

// driftRequests reads all that the command line names.
func (a *app) driftRequests(scripts []string, f *runFlags) (list []*pb.RunScriptRequest, err error) {
	f.dryRun, f.noEvents = true, true
	params, err := a.input().Params(f.paramsFile, f.params)
	if err != nil {
		return nil, err
	}
	own := *f
	own.params, own.paramsFile = nil, ""
	var names []string
	for _, script := range scripts {
		names = append(names, scriptName(script))
	}
	for i, script := range scripts {
		request, err := a.scriptRequest(script, &own)
		if err != nil {
			return nil, err
		}
		if request.Params, err = paramsOf(names, names[i], params); err != nil {
			return nil, err
		}
		list = append(list, request)
	}
	return list, nil
}

// scriptName is how a script is called: without directory and .lua.
func scriptName(script string) string { return strings.TrimSuffix(filepath.Base(script), ".lua") }

// paramsOf returns the parameters for one of the scripts of that name: those without the name of a script, and those with its
// own.
func paramsOf(names []string, name string, params *structpb.Struct) (*structpb.Struct, error) {
	mine := map[string]any{}
	all := params.AsMap()
	for key, value := range all {
		named := false
		for _, other := range names {
			named = named || strings.HasPrefix(key, other+".")
		}
		if !named {
			mine[key] = value
		}
	}
	for key, value := range all {
		if key, is := strings.CutPrefix(key, name+"."); is {
			mine[key] = value
		}
	}
	if len(mine) == 0 {
		return nil, nil
	}
	return structpb.NewStruct(mine)
}

// drift asks for one script after another, and prints what it would change.
func (a *app) drift(s *session, link *client.Link, scripts []string, requests []*pb.RunScriptRequest) error {
	type entry struct {
		Script string          `json:"script"`
		Drift  bool            `json:"drift"`
		Reply  json.RawMessage `json:"reply"`
	}
	list, differ := []entry{}, 0
	for i, request := range requests {
		reply, err := link.RunScript(s.ctx, request, cancelWait)
		if reply == nil || reply.Status == pb.ScriptStatus_SCRIPT_STATUS_UNSPECIFIED {
			return err
		}
		failed := a.scriptOutcome(reply)
		if failed != nil && !a.json {
			return failed
		}
		would, unknown := scriptreport.Foretold(reply.Changes)
		if would > 0 {
			differ++
		}
		if !a.json {
			a.printDrift(scripts[i], reply, would, unknown)
			continue
		}
		text, err := toJSON(reply)
		if err != nil {
			return err
		}
		list = append(list, entry{scripts[i], would > 0, text})
		if failed != nil {
			if err := a.printJSON(list); err != nil {
				return err
			}
			return failed
		}
	}
	if a.json {
		if err := a.printJSON(list); err != nil {
			return err
		}
	}
	switch {
	case differ == 0:
		return nil
	case a.json:
		return &failure{code: exitDrift}
	}
	return &failure{exitDrift, errors.New("not as wanted: " + plural(differ, "script") + " of " + fmt.Sprint(len(requests)))}
}

func (a *app) printDrift(script string, reply *pb.RunScriptResponse, would, unknown int) {
	words := "as wanted"
	if would > 0 {
		words = plural(would, "change") + " would be made"
	}
	if unknown > 0 {
		words += fmt.Sprintf("; %s cannot be foretold", plural(unknown, "command"))
	}
	fmt.Fprintf(a.stdout, "%s: %s\n", printableLine(script), words)
	if !a.quiet {
		scriptreport.Changes(a.stdout, reply)
	}
}
