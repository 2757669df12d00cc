package main

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"
)

// rawTerminal makes every key go through, where f is a terminal. restore brings it back; so does every signal that may end the
// program, before it does.
func rawTerminal(f *os.File) (restore func()) {
	fd := int(f.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return func() {} // no terminal: bytes come as they are
	}
	signals, done := make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	var work sync.WaitGroup
	work.Go(func() {
		for told := false; ; told = true {
			select {
			case <-done:
				return
			case s := <-signals:
				term.Restore(fd, before)
				if told || s == syscall.SIGHUP || s == syscall.SIGQUIT { // the first of the others cancels the request
					os.Exit(exitInterrupted)
				}
			}
		}
	})
	return sync.OnceFunc(func() {
		term.Restore(fd, before)
		signal.Stop(signals)
		close(done)
		work.Wait()
	})
}
