// Command wintest runs tests of the Windows build under Wine.
//
//	go run ./cmd/internal/rig/wintest                               # the packages that are known to pass there
//	go run ./cmd/internal/rig/wintest -run TestQuote -v ./builtins/exec
//	go run ./cmd/internal/rig/wintest run .build/quantix-kvm-agent.exe --help
//
// The first form is what "make wintest" runs: the list in packages_linux.go. In the second one everything is given to
// "go test" as it is. The third runs any Windows program, or one of Wine's own such as cmd, reg and msiexec. At the end of
// tests it says how many were run, and which were skipped for which reason.
//
// It installs Wine from Debian where it may (as root), and says otherwise what is missing. The Windows "machine", Wine's
// prefix, is .build/wine below the module, so that each checkout has its own; "rm -r .build/wine" makes the next run begin
// anew. Runs in one checkout share the prefix, and the last one to end stops what is left running in it.
//
// Its displays and its clipboard are those of an X server without a screen, Xvfb, which runs as long.
//
// Where Debian's Wine 8.0 differs from Windows so much that Go's tests do not run, it is helped: bcryptprimitives.dll, which
// Go's runtime loads, is a forwarder made by the binutils, the prefix says that it is Windows 10, and in what is run there the
// standard library takes Wine's "not implemented" for a way of deleting files as the answer of an old Windows.
//
// Not here: a real Windows. README.md has what Wine cannot show.
package main
