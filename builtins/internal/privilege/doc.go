// Package privilege turns on privileges of Windows that the agent's user has, and that are off unless a program asks for them.
//
// Not here: privileges of Linux.
package privilege
