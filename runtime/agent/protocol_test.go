package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The numbers of this package on the page of the protocol are its own.
func TestProtocolConstants(t *testing.T) {
	page, err := os.ReadFile("../../wire/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]any{
		"defaultReports": defaultReports, "readyEvery": readyEvery, "pingTelemetry": pingTelemetry, "requestMemory": requestMemory,
	} {
		if want := fmt.Sprintf("| `agent.%s` | %v | ", name, value); !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %s", want)
		}
	}
}
