package scriptreport

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParamValues(t *testing.T) {
	for text, want := range map[string]any{
		"3": 3.0, "-0.5": -0.5, "1.10": "1.10", "007": "007", "1e3": "1e3", "12345678901234567890": "12345678901234567890",
		"true": true, "null": nil, `"7"`: "7", "": "", "text": "text", "{": "{", "1 2": "1 2",
	} {
		if got, err := paramValue(text, false); err != nil || got != want {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
	for text, want := range map[string]string{"9007199254740993": "9007199254740993", "1e400": "1e400", "9007199254740992": ""} {
		if got, err := paramValue(text, false); err != nil || want != "" && got != want || want == "" && got != float64(1<<53) {
			t.Errorf("%s is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{`{"a":9223372036854775807}`, "[1,[9007199254740993]]", `[-12345678901234567890123]`, "[1e400]", "[1e-400]"} {
		if got, err := paramValue(text, false); err == nil || !strings.Contains(err.Error(), "exactly") {
			t.Errorf("%s is %v, %v", text, got, err)
		}
	}
	if got, err := paramValue("1e3", true); err != nil || got != 1000.0 {
		t.Error(got, err)
	}
	if _, err := paramValue("text", true); err == nil {
		t.Error("text was taken as JSON")
	}
}

// A file of parameters that is no object is told in words of JSON.
func TestParamsFileOfAnotherKind(t *testing.T) {
	for text, want := range map[string]string{
		"[1]": "a JSON array in place of an object", `"x"`: "a JSON string in place of an object", "7": "a JSON number in place of an object",
		"": "there is nothing in it", "{} {}": "something stands behind the value",
	} {
		file := filepath.Join(t.TempDir(), "params.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := (Input{}).Params(file, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
