package proc

import "os"

// Spool says where output of commands is kept until they have ended, beyond 64 KiB of each stream: many may run at once,
// and what they write is in memory only when the reply is made.
type Spool struct {
	// Dir is a directory for files without names; empty, or not there: all output is kept in memory.
	Dir string
	// Enter is asked before each write there; leave is called after it. On its error, as while the file system is frozen, the
	// rest is kept in memory. Nil: nothing is asked.
	Enter func() (leave func(), err error)
}

// memoryOutput is how many bytes of a stream are kept in memory first: most commands write less.
const memoryOutput = 64 << 10

// capture holds what a command wrote: its beginning, what is in a file after that, and what did not get there.
type capture struct {
	spool      Spool
	head, rest []byte
	file       *os.File // nil: there is none, or none yet
	spooled    int64    // bytes of the file
	failed     bool     // to write to the file, or to make it
}

func (c *capture) size() int64 { return int64(len(c.head)) + c.spooled + int64(len(c.rest)) }

// add keeps some more.
func (c *capture) add(p []byte) {
	if room := memoryOutput - len(c.head); room > 0 {
		n := min(room, len(p))
		c.head = append(c.head, p[:n]...)
		p = p[n:]
	}
	if len(p) > 0 && !c.failed {
		n, err := c.write(p)
		c.spooled += int64(n)
		c.failed = err != nil
		p = p[n:]
	}
	c.rest = append(c.rest, p...)
}

// write adds to the file, which it makes first. n bytes have got there.
func (c *capture) write(p []byte) (n int, err error) {
	if c.spool.Dir == "" {
		return 0, os.ErrNotExist
	}
	if c.spool.Enter != nil {
		leave, err := c.spool.Enter()
		if err != nil {
			return 0, err
		}
		defer leave()
	}
	if c.file == nil {
		if c.file, err = os.CreateTemp(c.spool.Dir, "output-"); err != nil {
			return 0, err
		}
		_ = os.Remove(c.file.Name()) // Windows removes it when it is closed
	}
	return c.file.WriteAt(p, c.spooled)
}

// take returns all that was kept, or the part in memory before the file where hold, which is asked for the memory of the rest,
// does not have it; cut says so. It ends the use of the file.
func (c *capture) take(hold func() error) (all []byte, cut bool) {
	defer c.close()
	if c.spooled == 0 {
		return append(c.head, c.rest...), false
	}
	if hold() != nil {
		return c.head, true
	}
	all = make([]byte, c.size())
	n := copy(all, c.head)
	if _, err := c.file.ReadAt(all[n:int64(n)+c.spooled], 0); err != nil {
		return c.head, true
	}
	copy(all[int64(n)+c.spooled:], c.rest)
	return all, false
}

func (c *capture) close() {
	if c.file != nil {
		_ = c.file.Close()
		_ = os.Remove(c.file.Name())
		c.file = nil
	}
}
