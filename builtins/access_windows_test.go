package builtins

import "testing"

// A pattern may begin with a volume and have slashes of both kinds; none of them escapes anything.
func TestStaticPartOfAPatternWithAVolume(t *testing.T) {
	for pattern, want := range map[string]struct {
		dir  string
		deep bool
	}{
		`C:\ProgramData\app.yaml`:   {`C:\ProgramData\app.yaml`, false},
		`C:\ProgramData\*.yaml`:     {`C:\ProgramData`, false},
		`C:/ProgramData/*/app.yaml`: {`C:\ProgramData`, true},
		`C:\*`:                      {`C:\`, false},
		`C:\*\x`:                    {`C:\`, true},
		`C:\a\..\b\x?`:              {`C:\b`, false},
		`\\server\share\logs\*.log`: {`\\server\share\logs`, false},
		`\\server\share\*\app.log`:  {`\\server\share\`, true},
		`\a/b\*c`:                   {`\a\b`, false},
	} {
		checkStatic(t, pattern, want.dir, want.deep)
	}
}
