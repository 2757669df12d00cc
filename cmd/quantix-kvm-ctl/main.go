// Quantix-kvm-ctl speaks to the agent of a virtual machine from its host. See quantix-kvm-ctl --help.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr})) }

// run is the whole program; it gives the exit status.
func run(args []string, io stdio) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a := &app{stdio: io}
	c := a.root()
	c.SetArgs(args)
	c.SetIn(io.in)
	c.SetOut(io.out)
	c.SetErr(io.err)
	err := c.ExecuteContext(ctx)
	if ctx.Err() != nil {
		err = errInterrupted
	}
	if text := a.describe(err); text != "" {
		fmt.Fprintln(io.err, "quantix-kvm-ctl:", text)
	}
	return a.status(err)
}
