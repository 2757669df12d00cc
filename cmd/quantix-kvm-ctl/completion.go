package main

import (
	"bytes"
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// completionTimeout bounds how long the shell waits at a press of the tabulator key; a guest that does not answer adds no
// completions.
const completionTimeout = 2 * time.Second

// complete returns a completion that asks the guest. list returns the words, each with an optional description after a
// tabulator. Without an agent the shell completes file names where files is true, and nothing otherwise.
func (a *app) complete(files bool, list func(*session) ([]string, error)) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		otherwise := cobra.ShellCompDirectiveNoFileComp
		if files {
			otherwise = cobra.ShellCompDirectiveDefault
		}
		if len(args) > 0 || files && strings.Contains(word, "/") {
			return nil, otherwise
		}
		if words := a.fitting(c.Context(), word, list); len(words) > 0 {
			return words, cobra.ShellCompDirectiveNoFileComp
		}
		return nil, otherwise
	}
}

// fitting returns those of the guest's words that begin with what is typed; none where the guest does not answer in time.
func (a *app) fitting(ctx context.Context, typed string, list func(*session) ([]string, error)) (fitting []cobra.Completion) {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	err := a.with(ctx, completionTimeout, func(s *session) error {
		words, err := list(s)
		for _, word := range words {
			if strings.HasPrefix(word, typed) {
				fitting = append(fitting, word)
			}
		}
		return err
	})
	if err != nil {
		return nil
	}
	return fitting
}

// completeNeeds completes the values of --allow.
func (a *app) completeNeeds(c *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	list := func(s *session) ([]string, error) { return needs(s, args) }
	return a.fitting(c.Context(), word, list), cobra.ShellCompDirectiveNoFileComp
}

// needs returns what the script of the guest that run names declares to need, as completions; where it declares nothing, or is
// a script of this host, the rooms of the guest, each with what it can be limited to.
func needs(s *session, args []string) (words []string, err error) {
	if len(args) > 0 && !isFile(args[0]) {
		scripts, err := s.Scripts(s.ctx)
		at := slices.IndexFunc(scripts, func(info *pb.ScriptInfo) bool { return info.Name == args[0] })
		if err == nil && at >= 0 && len(scripts[at].Needs) > 0 {
			return scripts[at].Needs, nil
		}
	}
	can, err := client.Call[*pb.GetCapabilitiesResponse](s.ctx, s.Client, &pb.GetCapabilitiesRequest{})
	for room := range strings.SplitSeq(can.GetFeatures()["rooms"], ",") {
		if name, scope, limited := strings.Cut(room, ":"); limited {
			room = name + "\tor " + name + ":" + strings.ToUpper(scope)
		}
		words = append(words, room)
	}
	return words, err
}

// scriptNames returns the scripts that run can start by name, as completions.
func scriptNames(s *session) (words []string, err error) {
	scripts, err := s.Scripts(s.ctx)
	for _, script := range scripts {
		words = append(words, script.Name+"\t"+script.Description)
	}
	return words, err
}

// transactionIDs returns the ids of the latest transactions, as completions.
func transactionIDs(s *session) (words []string, err error) {
	list, err := s.Transactions(s.ctx, 20)
	for _, t := range list {
		words = append(words, t.TransactionId+"\t"+strings.TrimSpace(t.Script.GetName()+" "+statusName(t.Status)))
	}
	return words, err
}

// awaitingIDs returns the id of the transaction that awaits its confirmation, as completions.
func awaitingIDs(s *session) (words []string, err error) {
	reply, err := client.Call[*pb.GetStatusResponse](s.ctx, s.Client, &pb.GetStatusRequest{})
	if open := reply.GetJournal().GetOpen(); open.GetConfirmUntil() != nil {
		about := strings.TrimSpace(open.Script.GetName() + " " + untilText(open.ConfirmRemainingMs) + " left")
		words = append(words, open.TransactionId+"\t"+about)
	}
	return words, err
}

// keptIDs returns the ids of the transactions of which something is left, as completions.
func keptIDs(s *session) (words []string, err error) {
	reply, err := client.Call[*pb.GetStatusResponse](s.ctx, s.Client, &pb.GetStatusRequest{})
	for _, dir := range reply.GetJournal().GetKept() {
		words = append(words, path.Base(strings.ReplaceAll(dir, `\\`, "/")))
	}
	return words, err
}

// completeVM completes with the virtual machines of this host that have a socket of an agent.
func completeVM(root string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, word string) (fitting []cobra.Completion, _ cobra.ShellCompDirective) {
		for _, id := range client.ListVMs(root) {
			if strings.HasPrefix(id, word) {
				fitting = append(fitting, id)
			}
		}
		return fitting, cobra.ShellCompDirectiveNoFileComp
	}
}

// completePath completes with paths of the guest, a directory at a time.
func (a *app) completePath(c *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if !strings.HasPrefix(word, "/") {
		return nil, cobra.ShellCompDirectiveDefault // a local one
	}
	dir := word[:strings.LastIndexByte(word, '/')+1]
	found := a.fitting(c.Context(), word, func(s *session) (paths []string, err error) {
		err = s.List(s.ctx, dir, strings.HasPrefix(path.Base(word), "."), func(e *pb.DirectoryEntry) error {
			name := dir + text.UnescapePath(e.Name)
			if e.IsDirectory {
				name += "/"
			}
			paths = append(paths, name)
			return nil
		})
		return paths, err
	})
	if len(found) == 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	directive := cobra.ShellCompDirectiveNoFileComp
	if len(found) == 1 && strings.HasSuffix(found[0], "/") {
		directive |= cobra.ShellCompDirectiveNoSpace
	}
	return found, directive
}

// groupNames returns the groups of the guest, as completions.
func groupNames(s *session) (words []string, err error) {
	err = s.readFile("/etc/group", func(line string) {
		name, _, _ := strings.Cut(line, ":")
		words = append(words, name)
	})
	return words, err
}

// readFile calls f with the lines of a small file of the guest.
func (s *session) readFile(path string, f func(line string)) error {
	var b bytes.Buffer
	if _, err := client.NewLink(s.Client, nil).PullTo(s.ctx, path, &b, client.PullOptions{}); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		f(strings.TrimSpace(line))
	}
	return nil
}

// flagWords completes a flag with words of the guest.
func (a *app) flagWords(c *cobra.Command, flag string, list func(*session) ([]string, error)) {
	complete := func(c *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.fitting(c.Context(), word, list), cobra.ShellCompDirectiveNoFileComp
	}
	if err := c.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err) // the flag is the caller's
	}
}

// parameterNames returns the parameters of the script of the guest that run names, as completions.
func parameterNames(s *session, args []string) (words []string, err error) {
	if len(args) == 0 {
		return nil, nil
	}
	scripts, err := s.Scripts(s.ctx)
	for _, script := range scripts {
		if script.Name != args[0] {
			continue
		}
		for name, schema := range script.GetParamsSchema().GetFields() {
			words = append(words, name+"=\t"+schema.GetStructValue().GetFields()["description"].GetStringValue())
		}
	}
	slices.Sort(words)
	return words, err
}

// completeParameter completes run -p.
func (a *app) completeParameter(c *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	list := func(s *session) ([]string, error) { return parameterNames(s, args) }
	return a.fitting(c.Context(), word, list), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}
