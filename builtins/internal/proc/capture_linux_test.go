package proc

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What is captured is what was written, whether there is a place for it on the disk, none, one that is frozen after a while, or
// one that is closed to writing. Nothing is left there.
func TestCapture(t *testing.T) {
	var all []byte
	for i := range 40 {
		all = append(all, bytes.Repeat([]byte{byte(i)}, 7000+i)...)
	}
	for name, frozenAfter := range map[string]int{"disk": 1000, "frozen": 0, "frozen later": 5, "no directory": 1000, "cannot be written": 1000} {
		t.Run(name, func(t *testing.T) {
			dir, entered := t.TempDir(), 0
			c := capture{spool: Spool{Dir: dir, Enter: func() (func(), error) {
				if entered++; entered > frozenAfter {
					return nil, errors.New("frozen")
				}
				return func() {}, nil
			}}}
			if name == "no directory" {
				c.spool.Dir = filepath.Join(dir, "none")
			}
			for rest := all; len(rest) > 0; {
				n := min(9999, len(rest))
				c.add(rest[:n])
				rest = rest[n:]
				if name == "cannot be written" && c.spooled > 100_000 && !c.failed {
					c.file.Close()
					reopened, err := os.CreateTemp(dir, "")
					if err != nil {
						t.Fatal(err)
					}
					if _, err := reopened.Write(all[memoryOutput:][:c.spooled]); err != nil {
						t.Fatal(err)
					}
					reopened.Close()
					if c.file, err = os.Open(reopened.Name()); err != nil { // read-only
						t.Fatal(err)
					}
					os.Remove(reopened.Name())
				}
			}
			spooled := c.spooled > 0
			if want := name != "frozen" && name != "no directory"; spooled != want {
				t.Errorf("spooled: %v", spooled)
			}
			asked := 0
			got, cut := c.take(func() error { asked++; return nil })
			if cut || !bytes.Equal(got, all) || (asked > 0) != spooled {
				t.Errorf("%d of %d bytes, cut: %v, asked %d times", len(got), len(all), cut, asked)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Error(left, err)
			}
		})
	}
}

// Where there is no memory for it, the beginning is left.
func TestCaptureWithoutMemory(t *testing.T) {
	c := capture{spool: Spool{Dir: t.TempDir()}}
	c.add(make([]byte, memoryOutput+1))
	got, cut := c.take(func() error { return errors.New("busy") })
	if len(got) != memoryOutput || !cut {
		t.Error(len(got), cut)
	}
}
