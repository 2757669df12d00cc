// Command idle is a Go program that does nothing, made of the libraries that the agent is made of: what the agent needs at rest
// is held against it.
//
// Not here: anything that the agent does.
package main

import (
	"os"
	"os/signal"
	"syscall"

	_ "github.com/spf13/cobra"
	_ "go.uber.org/zap"
	_ "gopkg.in/natefinch/lumberjack.v2"

	_ "github.com/quantix-kvm/guest-agent/builtins/all"
	_ "github.com/quantix-kvm/guest-agent/runtime/agent"
	_ "github.com/quantix-kvm/guest-agent/runtime/config"
	_ "github.com/quantix-kvm/guest-agent/runtime/sandbox/lua"
	_ "github.com/quantix-kvm/guest-agent/runtime/script"
	_ "github.com/quantix-kvm/guest-agent/scripts"
	_ "github.com/quantix-kvm/guest-agent/wire/client"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	<-end
}
