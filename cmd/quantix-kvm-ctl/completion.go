package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
)

// completeWithin is how long a shell may hang at a press of the tabulator key: a guest that does not answer gives nothing.
const completeWithin = 2 * time.Second

// complete makes a completion that asks the guest. What list gives are words, each with an optional description behind a
// tabulator. Without an agent the shell offers what it does by itself, which are files where files is true.
func (a *app) complete(files bool, list func(*session) ([]string, error)) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		otherwise := cobra.ShellCompDirectiveNoFileComp
		if files {
			otherwise = cobra.ShellCompDirectiveDefault
		}
		if len(args) > 0 || files && strings.Contains(word, "/") {
			return nil, otherwise
		}
		ctx, cancel := context.WithTimeout(c.Context(), completeWithin)
		defer cancel()
		var words []string
		err := a.with(ctx, completeWithin, func(s *session) (err error) {
			words, err = list(s)
			return err
		})
		var fitting []cobra.Completion
		for _, w := range words {
			if err == nil && strings.HasPrefix(w, word) {
				fitting = append(fitting, w)
			}
		}
		if len(fitting) == 0 {
			return nil, otherwise
		}
		return fitting, cobra.ShellCompDirectiveNoFileComp
	}
}

// scriptNames are the scripts that run can start by name.
func scriptNames(s *session) (words []string, err error) {
	scripts, err := s.Scripts(s.ctx)
	for _, script := range scripts {
		words = append(words, script.Name+"\t"+script.Description)
	}
	return words, err
}

// transactionIDs are those of the latest transactions.
func transactionIDs(s *session) (words []string, err error) {
	list, err := s.Transactions(s.ctx, 20)
	for _, t := range list {
		words = append(words, t.TransactionId+"\t"+strings.TrimSpace(t.Script.GetName()+" "+statusName(t.Status)))
	}
	return words, err
}

// completeVM offers the virtual machines of this host that have a socket of an agent.
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
