// Package rules holds the tests over the whole tree: who may import whom, what lies at top level, what is documented.
//
// Not here: anything that a program needs.
package rules
