//go:build race

package agenttest

const race = true
