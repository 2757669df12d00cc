// Command idle links what the agent links and does nothing: what it costs in memory, any agent of these libraries costs.
//
// Not here: measuring it; see the benchmarks of the agent.
package main

import (
	"os"
	"os/signal"

	_ "github.com/spf13/cobra"
	_ "go.uber.org/zap"

	_ "github.com/quantix-kvm/guest-agent/builtins/all"
	_ "github.com/quantix-kvm/guest-agent/runtime/agent"
	_ "github.com/quantix-kvm/guest-agent/runtime/config"
	_ "github.com/quantix-kvm/guest-agent/runtime/sandbox/lua"
	_ "github.com/quantix-kvm/guest-agent/runtime/script"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	<-stop
}
