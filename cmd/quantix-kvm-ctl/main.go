// Command quantix-kvm-ctl talks to the guest agent of a virtual machine from its host.
//
//	command line ─► cobra ─► one file per command ─► wire/client ─► socket
//	stdout ◄─ what was asked for      stderr ◄─ errors, progress, what a script did
//
// Not here: the protocol, which is wire/client's; this program reads flags and prints.
package main

import "os"

func main() {
	a := &app{stdin: os.Stdin, stdout: &output{file: os.Stdout}, stderr: os.Stderr}
	os.Exit(a.run(os.Args[1:]))
}
