package vmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/rawio"
)

// Latency sums up round trips.
type Latency struct {
	Median, P99 time.Duration
}

// Figures are what a channel does with nothing on it but read and write.
type Figures struct {
	RoundTrip Latency // of roundTripSize bytes there and back
	ToGuest   float64 // MiB/s, until the far end has read the last byte
	FromGuest float64 // MiB/s
}

// String writes the figures in one line.
func (f Figures) String() string {
	return fmt.Sprintf("round trip of %d bytes: median %v, p99 %v; to guest %.0f MiB/s, from guest %.0f MiB/s",
		roundTripSize, f.RoundTrip.Median, f.RoundTrip.P99, f.ToGuest, f.FromGuest)
}

const (
	roundTripSize = 64 // bytes; a ping's order of magnitude

	warmUp = 100 // round trips not counted, in which an emulated processor translates the code
	passes = 3   // measured transfers; the median counts
)

// Load says how much a measurement moves.
type Load struct {
	RoundTrips int   // default 2000
	Bytes      int64 // per transfer, default 64 MiB
}

func (l Load) withDefaults() Load {
	if l.RoundTrips == 0 {
		l.RoundTrips = 2000
	}
	if l.Bytes == 0 {
		l.Bytes = 64 << 20
	}
	return l
}

// RoundTrips writes size bytes to rw and reads as many back, n times, after a warm-up. The far end must echo.
func RoundTrips(rw io.ReadWriter, size, n int) (Latency, error) {
	out, in := make([]byte, size), make([]byte, size)
	times := make([]time.Duration, 0, n)
	for i := range warmUp + n {
		begun := time.Now()
		if _, err := rw.Write(out); err != nil {
			return Latency{}, err
		}
		if _, err := io.ReadFull(rw, in); err != nil {
			return Latency{}, err
		}
		if i >= warmUp {
			times = append(times, time.Since(begun))
		}
	}
	return Summarize(times), nil
}

// Summarize returns the median and the 99th percentile of times, which it sorts. Without times both are zero.
func Summarize(times []time.Duration) Latency {
	if len(times) == 0 {
		return Latency{}
	}
	slices.Sort(times)
	return Latency{Median: times[len(times)/2], P99: times[len(times)*99/100]}
}

// SendRate returns the MiB/s at which rw takes bytes in blocks of rawio.Block. The far end must be a sink of that many.
func SendRate(rw io.ReadWriter, bytes int64) (float64, error) {
	block, ack := make([]byte, rawio.Block), make([]byte, 1)
	return rate(bytes, func() error {
		for left := bytes; left > 0; left -= rawio.Block {
			if _, err := rw.Write(block[:min(left, rawio.Block)]); err != nil {
				return err
			}
		}
		_, err := io.ReadFull(rw, ack)
		return err
	})
}

// ReceiveRate returns the MiB/s at which rw yields bytes. The far end must be a source of that many.
func ReceiveRate(rw io.ReadWriter, bytes int64) (float64, error) {
	block := make([]byte, rawio.Block)
	return rate(bytes, func() error {
		if _, err := rw.Write(block[:1]); err != nil {
			return err
		}
		for left := bytes; left > 0; {
			n, err := rw.Read(block[:min(left, rawio.Block)])
			if err != nil {
				return err
			}
			left -= int64(n)
		}
		return nil
	})
}

// rate runs pass once uncounted and then passes times, and returns the median in MiB/s.
func rate(bytes int64, pass func() error) (float64, error) {
	var times []time.Duration
	for i := range passes + 1 {
		begun := time.Now()
		if err := pass(); err != nil {
			return 0, err
		}
		if i > 0 {
			times = append(times, time.Since(begun))
		}
	}
	return float64(bytes) / (1 << 20) / Summarize(times).Median.Seconds(), nil
}

// farEnd starts the far end in role and returns the near one. Closing that ends the far end, for which wait waits.
type farEnd func(ctx context.Context, role string, bytes int64) (near net.Conn, wait func() error, err error)

// MeasurePort measures a port of the machine with rawport as its guest's end. Nothing else may hold either end.
func (vm *VM) MeasurePort(ctx context.Context, port string, l Load) (Figures, error) {
	return vm.MeasureProgram(ctx, RawProgram, port, l)
}

// MeasureProgram is MeasurePort with another program at the guest's end, which takes the same arguments as rawport.
func (vm *VM) MeasureProgram(ctx context.Context, program, port string, l Load) (Figures, error) {
	return measure(ctx, l.withDefaults(), vm.farEnd(program, port))
}

// MeasureWork measures a program that does more with the bytes than rawport: its roles store and send take the place of
// sink and source. The rates are in MiB/s.
func (vm *VM) MeasureWork(ctx context.Context, program, port string, l Load) (store, send float64, err error) {
	l = l.withDefaults()
	err = play(ctx, vm.farEnd(program, port), l, "store", func(c net.Conn) (err error) { store, err = SendRate(c, l.Bytes); return })
	if err == nil {
		err = play(ctx, vm.farEnd(program, port), l, "send", func(c net.Conn) (err error) { send, err = ReceiveRate(c, l.Bytes); return })
	}
	return store, send, err
}

// Echo measures the round trips of a small message over a port, with rawport at its guest's end, until ctx ends.
func (vm *VM) Echo(ctx context.Context, port string) (Latency, error) {
	var times []time.Duration
	err := play(context.WithoutCancel(ctx), vm.farEnd(RawProgram, port), Load{Bytes: 1}, rawio.Echo, func(c net.Conn) error {
		message := make([]byte, roundTripSize)
		for ctx.Err() == nil {
			begun := time.Now()
			if _, err := c.Write(message); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, message); err != nil {
				return err
			}
			times = append(times, time.Since(begun))
		}
		return nil
	})
	return Summarize(times), err
}

// farEnd starts a program in the guest at a port.
func (vm *VM) farEnd(program, port string) farEnd {
	return func(ctx context.Context, role string, bytes int64) (net.Conn, func() error, error) {
		near, err := vm.Dial(ctx, port)
		if err != nil {
			return nil, nil, err
		}
		ended := make(chan error, 1)
		go func() {
			r, err := vm.Run(ctx, program, "-port", port, "-bytes", strconv.FormatInt(bytes, 10), role)
			if err == nil && r.ExitCode != 0 {
				err = fmt.Errorf("%s: %s", program, r.Stderr)
			}
			if err != nil {
				near.Close()
			}
			ended <- err
		}()
		return near, func() error { return <-ended }, nil
	}
}

// MeasureUnixPair measures a connected pair of unix sockets within this process, the bound of what a port could do.
func MeasureUnixPair(ctx context.Context, l Load) (Figures, error) {
	return measure(ctx, l.withDefaults(), func(_ context.Context, role string, bytes int64) (net.Conn, func() error, error) {
		near, far, err := unixPair()
		if err != nil {
			return nil, nil, err
		}
		ended := make(chan error, 1)
		go func() {
			err := rawio.Serve(role, far, far, bytes)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			ended <- errors.Join(err, far.Close())
		}()
		return near, func() error { return <-ended }, nil
	})
}

func measure(ctx context.Context, l Load, start farEnd) (Figures, error) {
	var f Figures
	steps := []struct {
		role string
		run  func(net.Conn) error
	}{
		{rawio.Echo, func(c net.Conn) (err error) { f.RoundTrip, err = RoundTrips(c, roundTripSize, l.RoundTrips); return }},
		{rawio.Sink, func(c net.Conn) (err error) { f.ToGuest, err = SendRate(c, l.Bytes); return }},
		{rawio.Source, func(c net.Conn) (err error) { f.FromGuest, err = ReceiveRate(c, l.Bytes); return }},
	}
	for _, s := range steps {
		if err := play(ctx, start, l, s.role, s.run); err != nil {
			return Figures{}, err
		}
	}
	return f, nil
}

// play runs one measurement against a far end in role.
func play(ctx context.Context, start farEnd, l Load, role string, run func(net.Conn) error) error {
	near, wait, err := start(ctx, role, l.Bytes)
	if err != nil {
		return fmt.Errorf("measure %s: %w", role, err)
	}
	stop := context.AfterFunc(ctx, func() { near.Close() })
	err = run(near)
	stop()
	near.Close()
	if err := errors.Join(err, wait()); err != nil {
		return fmt.Errorf("measure %s: %w", role, err)
	}
	return nil
}
