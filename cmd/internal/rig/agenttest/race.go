//go:build race

package agenttest

// Race says that the agents of these tests run under the race detector, whose own memory is not the agent's.
const Race = true
