package process

import (
	"context"
	"syscall"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxSignal is the highest number of a signal in the contract.
const maxSignal = 64

// reader reads nothing.
type reader struct{}

func newReader() reader { return reader{} }

// order is of nothing.
type order struct{}

func orderOf(*pb.ListProcessesRequest) (order, error) { return order{}, nil }

func canList() bool { return false }
func canKill() bool { return false }

// available says why a request cannot be served on this system.
func available(request string) error {
	return fault.Unsupported("%s is not supported on Windows", request)
}

func signalNumber(string) syscall.Signal { return 0 }

func (r *Room) read(context.Context, *pb.ListProcessesRequest, order) ([]*pb.ProcessInfo, error) {
	return nil, available("ListProcessesRequest")
}

// target is no process.
type target struct{ name string }

func reach(uint32, uint64) (*target, error) { return nil, available("KillProcessRequest") }

func (*target) close()                    {}
func (*target) send(syscall.Signal) error { return available("KillProcessRequest") }
