package exec

import "github.com/quantix-kvm/guest-agent/builtins/internal/proc"

// mountTable is empty on Windows.
type mountTable struct{}

func (*mountTable) remote() []proc.Mount { return nil }

func (*mountTable) canFreeze(func(string) bool) []string { return nil }

func (*mountTable) close() {}
