//go:build race

package sandbox_test

// raced: the race detector's memory is several times that of the program.
const raced = true
