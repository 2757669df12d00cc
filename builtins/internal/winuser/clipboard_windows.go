package winuser

import (
	"errors"
	"io/fs"
	"runtime"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	// busyTime is how long another program that has the clipboard open is waited for.
	busyTime = 2 * time.Second
	busyLook = 10 * time.Millisecond

	formatText  = 13 // CF_UNICODETEXT
	formatDIB   = 8  // CF_DIB
	formatFiles = 15 // CF_HDROP

	movable = 2 // GMEM_MOVEABLE

	messageOnly      = ^uintptr(2) // HWND_MESSAGE, -3
	messageQuit      = 0x0012
	messageClipboard = 0x031d // WM_CLIPBOARDUPDATE
	messageRun       = 0x8000 // WM_APP: there is a call to do
)

// Contents is content in the forms that there are of it; empty ones are not.
type Contents struct {
	Text string
	HTML string // a fragment
	PNG  []byte
}

// Clipboard is the clipboard of the desktop of this process, with a window that owns what is set. It is safe for concurrent
// use.
type Clipboard struct {
	calls  chan func()
	done   chan struct{}
	window uintptr
	thread uint32

	png, html uint32 // formats that have a name only

	mu      sync.Mutex
	changed func()
}

// OpenClipboard makes the window. The caller closes it.
func OpenClipboard() (*Clipboard, error) {
	c := &Clipboard{calls: make(chan func(), 16), done: make(chan struct{})}
	ready := make(chan error, 1)
	go c.serve(ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return c, nil
}

// windowClass is WNDCLASSEXW, and windowMessage MSG.
type windowClass struct {
	size, style                        uint32
	procedure                          uintptr
	classExtra, windowExtra            int32
	instance, icon, cursor, background uintptr
	menu, name                         *uint16
	smallIcon                          uintptr
}

type windowMessage struct {
	window     uintptr
	message    uint32
	wide, long uintptr
	time       uint32
	x, y       int32
	private    uint32
}

// className is that of the windows; windowProcedure handles what none of them has to look at.
const className = "QuantixClipboard"

var register = sync.OnceValue(func() error {
	name, err := windows.UTF16PtrFromString(className)
	if err != nil {
		return err
	}
	class := windowClass{name: name, procedure: user32("DefWindowProcW").Addr()}
	class.size = uint32(unsafe.Sizeof(class))
	atom, _, err := user32("RegisterClassExW").Call(uintptr(unsafe.Pointer(&class)))
	return failed("the window class", atom, err)
})

// serve makes the window and does all calls on its thread, which alone may.
func (c *Clipboard) serve(ready chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with its window
	defer close(c.done)
	if err := c.open(); err != nil {
		ready <- err
		return
	}
	ready <- nil
	var m windowMessage
	for {
		more, _, _ := user32("GetMessageW").Call(uintptr(unsafe.Pointer(&m)), 0, 0, 0)
		switch {
		case int32(more) <= 0:
			user32("DestroyWindow").Call(c.window)
			return
		case m.message == messageRun:
			select {
			case f := <-c.calls:
				f()
			default:
			}
		case m.message == messageClipboard:
			c.tell()
		default:
			user32("DispatchMessageW").Call(uintptr(unsafe.Pointer(&m)))
		}
	}
}

func (c *Clipboard) open() error {
	if err := register(); err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(className)
	if err != nil {
		return err
	}
	window, _, err := user32("CreateWindowExW").Call(0, uintptr(unsafe.Pointer(name)), 0, 0, 0, 0, 0, 0, messageOnly, 0, 0, 0)
	if err := failed("the window", window, err); err != nil {
		return err
	}
	c.window, c.thread = window, windows.GetCurrentThreadId()
	for name, to := range map[string]*uint32{"PNG": &c.png, "HTML Format": &c.html} {
		text, err := windows.UTF16PtrFromString(name)
		if err != nil {
			return err
		}
		format, _, err := user32("RegisterClipboardFormatW").Call(uintptr(unsafe.Pointer(text)))
		if err := failed(name, format, err); err != nil {
			return err
		}
		*to = uint32(format)
	}
	return nil
}

var errClosed = fault.Wrapf(fs.ErrClosed, "the clipboard is closed")

// do runs a function on the thread of the window.
func (c *Clipboard) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case c.calls <- func() { result <- f() }:
	case <-c.done:
		return errClosed
	}
	if ok, _, err := user32("PostMessageW").Call(c.window, messageRun, 0, 0); ok == 0 {
		select {
		case <-c.done: // with its window
			return errClosed
		default:
			return failed("the window", ok, err)
		}
	}
	select {
	case err := <-result:
		return err
	case <-c.done:
		return errClosed
	}
}

// tell says that others have changed the clipboard.
func (c *Clipboard) tell() {
	c.mu.Lock()
	changed := c.changed
	c.mu.Unlock()
	if owner, _, _ := user32("GetClipboardOwner").Call(); changed != nil && owner != c.window {
		changed()
	}
}

// Watch has a function called after each change of the clipboard that Write did not make. It must not wait, and call
// nothing of the clipboard. It is called once.
func (c *Clipboard) Watch(changed func()) error {
	c.mu.Lock()
	c.changed = changed
	c.mu.Unlock()
	return c.do(func() error {
		ok, _, err := user32("AddClipboardFormatListener").Call(c.window)
		return failed("listening to the clipboard", ok, err)
	})
}

// Done is closed when the clipboard is.
func (c *Clipboard) Done() <-chan struct{} { return c.done }

// Close gives the clipboard up. What was set stays: Windows has it all.
func (c *Clipboard) Close() error {
	user32("PostThreadMessageW").Call(uintptr(c.thread), messageQuit, 0, 0)
	<-c.done
	return nil
}

// with opens the clipboard, which one program at a time may, and closes it.
func (c *Clipboard) with(f func() error) error {
	return c.do(func() error {
		for until := time.Now().Add(busyTime); ; time.Sleep(busyLook) {
			ok, _, err := user32("OpenClipboard").Call(c.window)
			if ok != 0 {
				break
			}
			if time.Now().After(until) {
				return fault.Wrapf(fault.ErrBusy, "another program keeps the clipboard open: %v", err)
			}
		}
		defer user32("CloseClipboard").Call()
		return f()
	})
}

// Forms returns in which forms there is content: text, html, png and files; names are all formats that there are.
func (c *Clipboard) Forms() (forms, names []string, err error) {
	err = c.with(func() error {
		has := map[uint32]bool{}
		for format := uintptr(0); ; {
			next, _, _ := user32("EnumClipboardFormats").Call(format)
			if next == 0 || len(names) >= 200 {
				break
			}
			format = next
			has[uint32(format)] = true
			names = append(names, formatName(uint32(format)))
		}
		for _, form := range []struct {
			name string
			is   bool
		}{{"text", has[formatText]}, {"html", has[c.html]}, {"png", has[c.png] || has[formatDIB]}, {"files", has[formatFiles]}} {
			if form.is {
				forms = append(forms, form.name)
			}
		}
		return nil
	})
	return forms, names, err
}

// formatNames are those that have no name of their own (winuser.h).
var formatNames = map[uint32]string{
	1: "CF_TEXT", 2: "CF_BITMAP", 7: "CF_OEMTEXT", formatDIB: "CF_DIB", formatText: "CF_UNICODETEXT", formatFiles: "CF_HDROP",
	16: "CF_LOCALE",
	17: "CF_DIBV5",
}

func formatName(format uint32) string {
	if name := formatNames[format]; name != "" {
		return name
	}
	var name [256]uint16
	n, _, _ := user32("GetClipboardFormatNameW").Call(uintptr(format), uintptr(unsafe.Pointer(&name[0])), uintptr(len(name)))
	return windows.UTF16ToString(name[:min(int(n), len(name))])
}

func errNot(form string) error { return fault.Wrapf(fs.ErrNotExist, "the clipboard has no %s", form) }

// read copies what the clipboard has in a format, of at most limit bytes. The clipboard is open.
func read(format uint32, form string, limit int) ([]byte, error) {
	handle, _, _ := user32("GetClipboardData").Call(uintptr(format))
	if handle == 0 {
		return nil, errNot(form)
	}
	size, _, _ := kernel32("GlobalSize").Call(handle)
	if size > uintptr(limit) {
		return nil, fault.Wrapf(fault.ErrTooLarge, "the content of the clipboard is larger than %d bytes", limit)
	}
	content := make([]byte, size)
	if size == 0 {
		return content, nil
	}
	from, _, err := kernel32("GlobalLock").Call(handle)
	if from == 0 {
		return nil, failed("the content of the clipboard", from, err)
	}
	defer kernel32("GlobalUnlock").Call(handle)
	copyMemory(unsafe.Pointer(&content[0]), from, size)
	return content, nil
}

// copyMemory copies from memory that is none of Go's.
func copyMemory(to unsafe.Pointer, from, size uintptr) {
	kernel32("RtlMoveMemory").Call(uintptr(to), from, size)
}

// Text returns the text, with lines that end in LF, as long as its UTF-8 is at most limit bytes.
func (c *Clipboard) Text(limit int) (text string, err error) {
	err = c.with(func() error {
		content, err := read(formatText, "text", 4*limit+2)
		if err != nil {
			return err
		}
		units := make([]uint16, len(content)/2)
		for i := range units {
			units[i] = uint16(content[2*i]) | uint16(content[2*i+1])<<8
		}
		text = strings.ReplaceAll(windows.UTF16ToString(units), "\r\n", "\n")
		return nil
	})
	if err == nil && len(text) > limit {
		return "", fault.Wrapf(fault.ErrTooLarge, "the text of the clipboard is larger than %d bytes", limit)
	}
	return text, err
}

// HTML returns the fragment of HTML, of at most limit bytes with what is around it.
func (c *Clipboard) HTML(limit int) (fragment string, err error) {
	err = c.with(func() error {
		content, err := read(c.html, "html", limit)
		if err != nil {
			return err
		}
		fragment, err = DecodeHTML(content)
		return err
	})
	return fragment, err
}

// maxDIB is the largest image in bytes, as the clipboard has it: it is not compressed.
const maxDIB = 4*maxPixels + 1<<10

// PNG returns the image, of at most limit bytes. One that is there as a bitmap alone is made a PNG.
func (c *Clipboard) PNG(limit int) (content []byte, err error) {
	var dib []byte
	err = c.with(func() error {
		content, err = read(c.png, "png", limit)
		if errors.Is(err, fs.ErrNotExist) {
			dib, err = read(formatDIB, "png", maxDIB)
		}
		return err
	})
	if err != nil || dib == nil {
		return trimPNG(content), err
	}
	if content, err = DecodeDIB(dib); err == nil && len(content) > limit {
		return nil, fault.Wrapf(fault.ErrTooLarge, "the image of the clipboard is larger than %d bytes", limit)
	}
	return content, err
}

// trimPNG cuts what memory of Windows has after the last chunk of a PNG.
func trimPNG(content []byte) []byte {
	if at := strings.LastIndex(string(content), "IEND"); at >= 0 && at+8 <= len(content) {
		return content[:at+8]
	}
	return content
}

// Write makes contents those of the clipboard, in all forms that there are.
func (c *Clipboard) Write(contents Contents) error {
	type form struct {
		format uint32
		data   []byte
	}
	var forms []form
	if contents.Text != "" {
		if !utf8.ValidString(contents.Text) || strings.ContainsRune(contents.Text, 0) {
			return fault.Invalid("the text is not UTF-8, or has a zero byte")
		}
		text := strings.ReplaceAll(strings.ReplaceAll(contents.Text, "\r\n", "\n"), "\n", "\r\n")
		units, err := windows.UTF16FromString(text)
		if err != nil {
			return fault.Invalid("the text has a zero byte")
		}
		forms = append(forms, form{formatText, unsafe.Slice((*byte)(unsafe.Pointer(&units[0])), 2*len(units))})
	}
	if contents.HTML != "" {
		if !utf8.ValidString(contents.HTML) || strings.ContainsRune(contents.HTML, 0) {
			return fault.Invalid("the HTML is not UTF-8, or has a zero byte")
		}
		forms = append(forms, form{c.html, append(EncodeHTML(contents.HTML), 0)})
	}
	if len(contents.PNG) > 0 {
		dib, err := EncodeDIB(contents.PNG)
		if err != nil {
			return err
		}
		forms = append(forms, form{c.png, contents.PNG}, form{formatDIB, dib})
	}
	if len(forms) == 0 {
		return fault.Invalid("there is nothing to set the clipboard to")
	}
	return c.with(func() error {
		if ok, _, err := user32("EmptyClipboard").Call(); ok == 0 {
			return failed("the clipboard", ok, err)
		}
		for _, f := range forms {
			if err := write(f.format, f.data); err != nil {
				return err
			}
		}
		return nil
	})
}

// write gives content to the clipboard, which is open.
func write(format uint32, data []byte) error {
	handle, _, err := kernel32("GlobalAlloc").Call(movable, uintptr(len(data)))
	if handle == 0 {
		return failed("memory for the clipboard", handle, err)
	}
	to, _, err := kernel32("GlobalLock").Call(handle)
	if to == 0 {
		kernel32("GlobalFree").Call(handle)
		return failed("memory for the clipboard", to, err)
	}
	kernel32("RtlMoveMemory").Call(to, uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)))
	kernel32("GlobalUnlock").Call(handle)
	if set, _, err := user32("SetClipboardData").Call(uintptr(format), handle); set == 0 { // else it is Windows's
		kernel32("GlobalFree").Call(handle)
		return failed("the clipboard", set, err)
	}
	return nil
}
