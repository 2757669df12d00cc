package client

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The numbers of this package on the page of the protocol are its own.
func TestProtocolConstants(t *testing.T) {
	page, err := os.ReadFile("../PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]any{"pushChunk": pushChunk, "pullChunk": pullChunk, "pushWindow": pushWindow, "pullWindow": pullWindow} {
		if want := fmt.Sprintf("| `client.%s` | %v | ", name, value); !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %s", want)
		}
	}
}
