// Quantix-kvm-agent is the daemon in the guest. See quantix-kvm-agent --help.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/exec"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scripttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/usagetext"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == sandbox.Arg {
		os.Exit(lua.Main(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == all.HelperArg {
		os.Exit(all.HelperMain())
	}
	if exec.ChildMain() || scripttest.ChildMain() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if c, err := command().ExecuteContextC(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "quantix-kvm-agent:", usagetext.Of(c, err))
		code := 1
		var exit *exitError
		if errors.As(err, &exit) {
			code = exit.code
		}
		os.Exit(code)
	}
}
