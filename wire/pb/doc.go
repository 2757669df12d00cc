// Package pb holds the messages of the guest agent protocol and the Go code generated from them.
//
//	agent.proto    the contract with the Node Daemon, and the envelope
//	script.proto   scripts and transactions, as a host asks for them
//	status.proto   the state of the agent
//	file.proto, exec.proto, …
//	               one file per room, by its name: arguments and results of what scripts call, and what else belongs to the room
//	common.proto   messages that several files or rooms use
//	test.proto     arguments and results of the table test, which the test of a script calls
//	runner.proto   between the agent and the process that runs a script
//	journal.proto  what a transaction keeps on disk
//
// All are of one proto package, so a message that moves from one file to another keeps its full name. The generator takes
// every .proto file of this directory; there is no list of them.
//
// Not here: what a message means to whom, and anything written by hand.
package pb
