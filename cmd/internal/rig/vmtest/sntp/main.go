// Sntp answers SNTP requests (RFC 4330) with a time of its own: one that is ahead of the machine's clock by a fixed number of
// seconds when it starts, and goes on from there whatever becomes of that clock.
//
//	sntp ADDRESS SECONDS
//
// Not here: anything that a real server has beside answers.
package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sntp:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: sntp ADDRESS SECONDS")
	}
	ahead, err := strconv.ParseFloat(args[1], 64)
	if err != nil {
		return err
	}
	conn, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	start := time.Now()
	first := start.Round(0).Add(time.Duration(ahead * float64(time.Second)))
	for request := make([]byte, 512); ; {
		n, from, err := conn.ReadFrom(request)
		if err != nil {
			return err
		}
		if n >= packetSize {
			_, _ = conn.WriteTo(answer(request[:packetSize], first.Add(time.Since(start))), from) // by the monotonic clock
		}
	}
}

const (
	packetSize = 48
	// since1900 is the number of seconds from 1900, where NTP counts from, to 1970.
	since1900 = 2208988800
)

// answer returns the packet for a time: version 4, a server of stratum 1.
func answer(request []byte, now time.Time) []byte {
	reply := make([]byte, packetSize)
	reply[0], reply[1], reply[2], reply[3] = 4<<3|4, 1, request[2], 0xec
	copy(reply[12:], "TEST")
	stamp := uint64(now.Unix()+since1900)<<32 | uint64(now.Nanosecond())<<32/1e9
	copy(reply[24:32], request[40:48]) // what the client sent comes back
	for _, at := range []int{16, 32, 40} {
		binary.BigEndian.PutUint64(reply[at:], stamp)
	}
	return reply
}
