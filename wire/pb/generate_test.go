package pb_test

// Go generate fails at a file that is gone when its turn comes, and the generator removes the code of a .proto file that is
// gone. The files of an external test package come last, so the generator is run from here.
//
//go:generate go run ./internal/gen
