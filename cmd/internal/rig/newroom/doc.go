// Package newroom holds the test of builtins/README.md: the room of its code blocks is added to a copy of the source tree, and
// the agent that is built there has it.
//
// Not here: anything that a program needs.
package newroom
