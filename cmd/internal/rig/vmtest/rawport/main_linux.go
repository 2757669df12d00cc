// Command rawport is the bare end of a port in the guest: read and write, and nothing else. What an agent reaches is
// measured against it.
//
//	rawport -port NAME echo             send back what comes
//	rawport -port NAME sink   -bytes N  read N bytes, then answer with one byte; again, until the host leaves
//	rawport -port NAME source -bytes N  wait for one byte, then write N bytes; again, until the host leaves
//
// Not here: the host's side and the clock (package vmtest).
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/rawio"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/vport"
)

func main() {
	name := flag.String("port", "org.quantix.raw.0", "name of the virtio-serial port")
	bytes := flag.Int64("bytes", 0, "bytes per round of sink and source")
	flag.Parse()
	if err := run(*name, flag.Arg(0), *bytes); err != nil {
		fmt.Fprintln(os.Stderr, "rawport:", err)
		os.Exit(1)
	}
}

func run(name, role string, bytes int64) error {
	port, err := vport.Open(name, 10*time.Second)
	if err != nil {
		return err
	}
	defer port.Close()
	err = rawio.Serve(role, port.Session(), port, bytes)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
