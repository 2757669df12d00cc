// Package pb holds the messages of the guest agent protocol and the Go code generated from them.
//
//	agent.proto   the contract with the Node Daemon, and the envelope
//	script.proto  this project's own messages: scripts, transactions, errors
//	ops.proto     arguments and results of what scripts call
//	runner.proto  between the agent and the process that runs a script
//	journal.proto  what a transaction keeps on disk
//
// Not here: what a message means to whom, and anything written by hand.
package pb

//go:generate go run ./internal/gen
