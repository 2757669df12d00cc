package policy

import (
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What a policy costs a request: none, and one of two rules on paths.
func BenchmarkCheck(b *testing.B) {
	root, err := fsys.Open("/")
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	table := builtins.NewTable(all.New(all.Config{}).List()...)
	in := &pb.FileReadRequest{Path: "/etc/passwd"}
	for name, text := range map[string]string{"none": "", "paths": "security:\n  deny_file_read_paths: [/etc/shadow, /root]\n"} {
		c, _, err := config.Parse([]byte(text))
		if err != nil {
			b.Fatal(err)
		}
		p, err := New(c.Security, &Guest{Files: root}, table.Ops())
		if err != nil {
			b.Fatal(err)
		}
		var now Current
		now.Set(p)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := now.Check("", table.Native(in), in, table.Native(in).AccessOf(in)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
