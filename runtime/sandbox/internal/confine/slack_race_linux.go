//go:build race

package confine

// slack is room that a build needs for itself: the race detector maps several times what the program uses.
const slack = 4 << 30
