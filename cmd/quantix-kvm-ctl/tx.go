package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) txCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "tx",
		Short: "show the transactions of the guest's scripts, and clean up after them",
		Long:  "tx shows the transactions that the agent keeps: each script that changed something, or tried to, is one.",
		Example: `  quantix-kvm-ctl tx list
  quantix-kvm-ctl tx show 6f1c`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return usage("tx needs list, show or clean") },
	}
	c.AddCommand(a.txListCommand(), a.txShowCommand(), a.txCleanCommand())
	return c
}

func (a *app) txListCommand() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use:   "list",
		Short: "list transactions, the newest first",
		Long: `list lists the transactions that the agent keeps, the newest first.

With --json: an array of TransactionInfo.`,
		Example: "  quantix-kvm-ctl tx list -n 10",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if limit < 0 {
				return usage("--limit is negative")
			}
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				list, err := s.Transactions(s.ctx, limit)
				if err != nil {
					return err
				}
				return a.printTransactions(list)
			})
		},
	}
	c.Flags().IntVarP(&limit, "limit", "n", 20, "show at most `n`; 0: all")
	return c
}

func (a *app) txShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "show one transaction with all its changes",
		Long: `show shows one transaction: what it changed, what it logged, its result and its error.

With --json: a TransactionInfo.`,
		Example: "  quantix-kvm-ctl tx show 01a2077db00b8a7213684abd1156b6cb",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: a.complete(false, transactionIDs),
		RunE: func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				id, err := transactionID(s, args[0])
				if err != nil {
					return err
				}
				info, err := s.Transaction(s.ctx, id)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(info)
				}
				return a.printTransaction(info)
			})
		},
	}
}

// transactionID returns the id of the transaction that is meant by the beginning of an id.
func transactionID(s *session, given string) (string, error) {
	if len(given) >= transactionIDLength {
		return given, nil
	}
	list, err := s.Transactions(s.ctx, 0)
	if err != nil { // which the request itself reports
		return given, nil
	}
	var ids []string
	for _, t := range list {
		ids = append(ids, t.TransactionId)
	}
	return oneOf(given, ids)
}

// transactionIDLength is the length of a whole id.
const transactionIDLength = 32

func (a *app) txCleanCommand() *cobra.Command {
	var all, abandon bool
	c := &cobra.Command{
		Use:   "clean [--abandon] ID... | --all",
		Short: "remove what is left of transactions that could not be undone",
		Long: `clean removes what the agent kept of transactions that it could not roll back completely: the former content of what they
changed. status lists them, tx show lists what was not undone. Look at them first, in the guest: what is removed here
cannot be restored any more. Their entries in tx list stay.

Where a disk is gone for good, --abandon ends what would wait for it for ever: a rollback that has not ended takes back all
else, the transaction counts as one that could not be rolled back, and so others can begin. What it had changed on that disk
is never restored, also if the disk comes back.

The transactions are independent of each other: one that fails does not keep the others.

With --json: {"removed": [ID...]}.`,
		Example: `  quantix-kvm-ctl tx clean 01a2077db00b8a7213684abd1156b6cb
  quantix-kvm-ctl tx clean --all`,
		ValidArgsFunction: a.complete(false, keptIDs),
		RunE: func(c *cobra.Command, ids []string) error {
			if all != (len(ids) == 0) {
				return usage("tx clean needs one of ID and --all")
			}
			if all && abandon {
				return usage("--abandon needs the ID of each transaction")
			}
			request := &pb.CleanTransactionsRequest{TransactionIds: ids, All: all, Abandon: abandon}
			return a.with(c.Context(), requestTimeout, func(s *session) error { return a.cleanTransactions(s, request) })
		},
	}
	c.Flags().BoolVar(&all, "all", false, "remove what is left of all of them")
	c.Flags().BoolVar(&abandon, "abandon", false, "wait for no mount: what was changed on a disk that is gone is given up for ever")
	return c
}

func (a *app) cleanTransactions(s *session, request *pb.CleanTransactionsRequest) error {
	for i, id := range request.TransactionIds {
		whole, err := transactionID(s, id)
		if err != nil {
			return err
		}
		request.TransactionIds[i] = whole
	}
	removed, err := s.CleanTransactions(s.ctx, request)
	if a.json {
		if err := a.printJSON(map[string][]string{"removed": append([]string{}, removed...)}); err != nil {
			return err
		}
	} else {
		for _, id := range removed {
			a.note("removed what was left of %s", id)
		}
	}
	return err
}

func (a *app) printTransactions(list []*pb.TransactionInfo) error {
	if a.json {
		array, err := listJSON(list)
		if err != nil {
			return err
		}
		return a.printJSON(array)
	}
	rows := [][]string{{"ID", "STARTED", "STATUS", "PHASE", "CHANGES", "SCRIPT", "KEY"}}
	for _, t := range list {
		rows = append(rows, []string{t.TransactionId, at(t.Started), statusName(t.Status), phaseText(t), fmt.Sprint(t.Changes), t.Script.GetName(), t.Key})
	}
	return table(a.stdout, rows)
}

// statusName is a status in the words of tables.
func statusName(s pb.ScriptStatus) string {
	if s == pb.ScriptStatus_SCRIPT_STATUS_UNSPECIFIED {
		return "-"
	}
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(s.String(), "SCRIPT_STATUS_")), "_", " ")
}

// phaseText is the phase in the words of tables, with the time that is left to confirm it.
func phaseText(t *pb.TransactionInfo) string {
	if t.ConfirmUntil == nil {
		return t.Phase
	}
	return t.Phase + ", " + untilText(t.ConfirmRemainingMs) + " left"
}

// confirmText says until when a transaction can be confirmed.
func confirmText(t *pb.TransactionInfo) string {
	if t.ConfirmUntil == nil {
		return "-"
	}
	return fmt.Sprintf("until %s, %s left", at(t.ConfirmUntil), untilText(t.ConfirmRemainingMs))
}

func (a *app) printTransaction(t *pb.TransactionInfo) error {
	rows := [][]string{
		{"transaction", t.TransactionId},
		{"status", statusName(t.Status)},
		{"phase", t.Phase},
		{"script", strings.TrimSpace(t.Script.GetName() + " " + t.Script.GetVersion())},
		{"sha256", t.Script.GetSha256()},
		{"key", t.Key},
		{"request", t.MessageId},
		{"started", at(t.Started)},
		{"finished", at(t.Finished)},
		{"confirm", confirmText(t)},
		{"journal", size(t.JournalBytes)},
	}
	if err := table(a.stdout, rows); err != nil || t.Reply == nil {
		return err
	}
	for _, line := range t.Reply.Log {
		fmt.Fprintf(a.stdout, "log: %-5s %s\n", line.Level, printable(line.Message))
	}
	for _, c := range t.Reply.Changes {
		fmt.Fprintf(a.stdout, "change: %s\n", scriptreport.ChangeLine(t.Reply.Status, c))
		scriptreport.Diff(a.stdout, c.Diff)
	}
	for _, c := range t.Reply.AfterCommit {
		fmt.Fprintln(a.stdout, scriptreport.AfterLine(c))
	}
	for _, c := range t.Reply.RollbackRan {
		fmt.Fprintln(a.stdout, scriptreport.RanLine(c))
	}
	for _, c := range t.Reply.NotUndone {
		fmt.Fprintf(a.stdout, "not undone: %s\n", scriptreport.ChangeLine(t.Reply.Status, &pb.Change{Op: c.Op, Target: c.Target, Action: c.Action, ContentHidden: c.ContentHidden}))
	}
	if t.Reply.Error != nil {
		fmt.Fprintf(a.stdout, "error: %s\n", printable(scriptreport.ErrorText(t.Reply.Error)))
	}
	if isNull(t.Reply.Result) {
		return nil
	}
	text, err := toJSON(t.Reply.Result)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "result: %s\n", text)
	return err
}
