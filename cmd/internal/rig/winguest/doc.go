// Package winguest runs the Windows build of the agent and of the ctl as processes, with a virtio-serial port between them. The
// driver of virtio-serial is not there under Wine, so the port is a named pipe with a link like the driver's:
//
//	ctl ─► \\.\pipe\NAME ◄─ Host ─► \\.\pipe\… ◄─ \\.\Global\org.quantix.agent.N ◄─ agent
//
// Cmd/internal/rig/wintest builds both programs and says where they are.
//
// Not here: what the driver itself does, which wire/port tests by the answers of its source.
package winguest
