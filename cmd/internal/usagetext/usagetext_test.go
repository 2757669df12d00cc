package usagetext

import (
	"errors"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// Each is what the libraries say today: another version of them with other words is noticed here.
func TestOf(t *testing.T) {
	none := func(*cobra.Command, []string) error { return nil }
	for want, args := range map[string][]string{
		`one takes no argument, and got "x": prog one`:                 {"one", "x"},
		"two needs at least 1 argument, and got 0: prog two PATH...":   {"two"},
		"three needs 2 arguments, and got 1: prog three A B":           {"three", "a"},
		`four takes at most 1 argument, and got 2: prog four [A]`:      {"four", "a", "b"},
		`unknown command "x" for "prog group"`:                         {"group", "x"},
		`unknown command "x" for "prog"`:                               {"x"},
		"unknown flag: --nonsense":                                     {"one", "--nonsense"},
		"--time 5: it is no time such as 90s, 5m or 1h30m":             {"one", "--time", "5"},
		"--number x: it is no whole number from 0 on":                  {"one", "--number", "x"},
		"--number 99999999999999999999999999: the number is too large": {"one", "--number", "99999999999999999999999999"},
	} {
		root := &cobra.Command{Use: "prog", SilenceErrors: true, SilenceUsage: true}
		one := &cobra.Command{Use: "one", Args: cobra.NoArgs, RunE: none}
		one.Flags().Duration("time", time.Second, "")
		one.Flags().Uint64("number", 0, "")
		group := &cobra.Command{Use: "group", Args: cobra.NoArgs, RunE: none}
		group.AddCommand(&cobra.Command{Use: "part", RunE: none})
		root.AddCommand(one, group,
			&cobra.Command{Use: "two PATH...", Args: cobra.MinimumNArgs(1), RunE: none},
			&cobra.Command{Use: "three A B", Args: cobra.ExactArgs(2), RunE: none},
			&cobra.Command{Use: "four [A]", Args: cobra.MaximumNArgs(1), RunE: none})
		root.SetArgs(args)
		c, err := root.ExecuteC()
		if err == nil || Of(c, err).Error() != want {
			t.Errorf("%q: %v", args, err)
		}
	}
	other := errors.New("the disk is full")
	if Of(&cobra.Command{}, other) != other {
		t.Error("another error is not left alone")
	}
}
