package winuser

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Marks around a fragment in the form that Windows has for HTML.
const (
	fragmentBegin = "<!--StartFragment-->"
	fragmentEnd   = "<!--EndFragment-->"
)

// htmlHeader is the description ahead of the HTML: offsets in bytes from its own beginning, of a width that never changes.
const htmlHeader = "Version:0.9\r\nStartHTML:%010d\r\nEndHTML:%010d\r\nStartFragment:%010d\r\nEndFragment:%010d\r\n"

// EncodeHTML writes HTML as the clipboard format "HTML Format" has it: UTF-8, with a description ahead and marks around the
// fragment.
func EncodeHTML(fragment string) []byte {
	header := len(fmt.Sprintf(htmlHeader, 0, 0, 0, 0))
	before, after := "<html><body>\r\n"+fragmentBegin, fragmentEnd+"\r\n</body></html>"
	start := header + len(before)
	end := start + len(fragment)
	return []byte(fmt.Sprintf(htmlHeader, header, end+len(after), start, end) + before + fragment + after)
}

// DecodeHTML returns the fragment in what the clipboard has as "HTML Format". Offsets of others are not trusted: where they
// are no good the marks count. An error says that it is not of this form, or no UTF-8.
func DecodeHTML(data []byte) (string, error) {
	if end := bytes.IndexByte(data, 0); end >= 0 {
		data = data[:end]
	}
	start, end := offsetIn(data, "StartFragment:"), offsetIn(data, "EndFragment:")
	fragment := data
	switch {
	case start >= 0 && end >= start && end <= len(data):
		fragment = data[start:end]
	default:
		_, rest, began := bytes.Cut(data, []byte(fragmentBegin))
		inner, _, ended := bytes.Cut(rest, []byte(fragmentEnd))
		if !began || !ended {
			return "", fault.Wrapf(fault.ErrCorrupt, "the HTML of the clipboard says not where it begins and ends")
		}
		fragment = inner
	}
	if !utf8.Valid(fragment) {
		return "", fault.Wrapf(fault.ErrCorrupt, "the HTML of the clipboard is not UTF-8")
	}
	return string(fragment), nil
}

// offsetIn returns an offset in the description; -1: there is none.
func offsetIn(data []byte, name string) int {
	const most = 1 << 10 // bytes of a description
	head := string(data[:min(len(data), most)])
	if at := strings.IndexByte(head, '<'); at >= 0 {
		head = head[:at]
	}
	for line := range strings.SplitSeq(head, "\n") {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 31); err == nil {
				return int(n)
			}
		}
	}
	return -1
}
