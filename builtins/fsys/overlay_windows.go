package fsys

// modesTellRights says that the bits of a mode are not who may do what.
const modesTellRights = false

func agentIDs() (uid, gid uint32) { return 0, 0 }

func checkWriteAt(handle, string) error { return nil }

func checkChown(*Meta, uint32, uint32) error { return unsupported("an owner") }
