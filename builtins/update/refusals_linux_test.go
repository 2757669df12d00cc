package update

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What is not signed, or for another program, version or platform, or does not come whole and in order, changes nothing.
func TestRefusals(t *testing.T) {
	long := strings.Repeat("1", 4096)
	for name, c := range map[string]struct {
		change func(b *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest
		config func(*Config)
		want   string
	}{
		"no key": {config: func(c *Config) { c.PublicKey = "" }, want: "it is off"},
		"unsigned": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].Signature = nil
			return list
		}, want: "is not signed"},
		"no signature of minisign": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].Signature = make([]byte, 64)
			return list
		}, want: "no file of minisign"},
		"wrong key": {change: func(b *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			_, b.key, _ = minisign.GenerateKey(nil)
			list[0].Signature = b.sign(works, comment("1.1.0"))
			return list
		}, want: "is trusted"},
		"wrong key with the number of the right one": {change: func(b *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			var right, wrong minisign.Signature
			err := right.UnmarshalText(list[0].Signature)
			_, b.key, _ = minisign.GenerateKey(nil)
			err = errors.Join(err, wrong.UnmarshalText(b.sign(works, comment("1.1.0"))))
			wrong.KeyID = right.KeyID
			text, e := wrong.MarshalText()
			if err = errors.Join(err, e); err != nil {
				b.t.Fatal(err)
			}
			list[0].Signature = text
			return list
		}, want: "not of this program"},
		"another comment": {change: func(b *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].Signature = bytes.Replace(list[0].Signature, []byte("version:1.1.0"), []byte("version:1.2.0"), 1)
			for _, in := range list {
				in.TargetVersion = "1.2.0"
			}
			return list
		}, want: "not of this program"},
		"another program": {change: func(b *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].Signature = b.sign(works+"#", comment("1.1.0"))
			return list
		}, want: "not of this program"},
		"not hashed before": {change: func(b *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].Signature = minisign.SignWithComments(b.key, []byte(works), comment("1.1.0"), "")
			return list
		}, want: "old kind"},
		"another platform": {change: func(b *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].Signature = b.sign(works, "version:1.1.0 platform:plan9/mips")
			return list
		}, want: `for "plan9/mips"`},
		"no platform": {change: func(b *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].Signature = b.sign(works, "version:1.1.0")
			return list
		}, want: "lacks"},
		"two versions": {change: func(b *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].Signature = b.sign(works, comment("1.1.0")+" version:1.1.0")
			return list
		}, want: "two words"},
		"another version": {change: func(b *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].Signature = b.sign(works, comment("1.3.0"))
			return list
		}, want: `for version "1.3.0"`},
		"no checksum": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].ChecksumSha256 = ""
			return list
		}, want: "checksum_sha256 is required"},
		"another checksum": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].ChecksumSha256 = strings.Repeat("0", 64)
			return list
		}, want: "SHA-256"},
		"no size": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].TotalSize = 0
			return list
		}, want: "total_size"},
		"too large a size": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].TotalSize = maxProgram + 1
			return list
		}, want: "total_size"},
		"truncated": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[2].BinaryData = list[2].BinaryData[1:]
			return list
		}, want: "the last chunk came after"},
		"more than was announced": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[1].BinaryData = make([]byte, len(works))
			return list
		}, want: "total_size is"},
		"swapped chunks": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			return []*pb.AgentUpdateRequest{list[0], list[2], list[1]}
		}, want: "chunk 2 came where 1 was due"},
		"chunk 0 again": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			return []*pb.AgentUpdateRequest{list[0], list[0], list[1], list[2]}
		}, want: "chunk 0 came where 1 was due"},
		"no chunk 0": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			return list[1:]
		}, want: "no transfer has begun"},
		"the version changes": {change: func(_ *bench, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[1].TargetVersion = "1.2.0"
			return list
		}, want: "which is dropped"},
		"older":                          {config: func(c *Config) { c.Version = "1.1.1" }, want: "older than the present"},
		"older than a release candidate": {config: func(c *Config) { c.Version = "1.2.0-rc.1" }, want: "older than the present"},
		"no order":                       {config: func(c *Config) { c.Version = "unknown" }, want: "cannot be compared"},
		"self-test fails": {change: func(b *bench, _ []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			return b.chunks("#!/bin/sh\necho it must not be >&2\nexit 3\n", "1.1.0")
		}, want: "it must not be"},
		"no program": {change: func(b *bench, _ []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			return b.chunks("certainly no program", "1.1.0")
		}, want: "cannot be started"},
		"self-test hangs": {config: func(c *Config) {
			c.SelfTestTime = 200 * time.Millisecond
		}, change: func(b *bench, _ []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			return b.chunks("#!/bin/sh\nsleep 3600\n", "1.1.0")
		}, want: "did not end within"},
		"the root of the file system": {config: func(c *Config) { c.Restart = nil }, want: "nothing starts this agent again"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, c.config)
			list := b.chunks(works, "1.1.0")
			if c.change != nil {
				list = c.change(b, list)
			}
			reply, err := b.send(list...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, %v; want %q", reply, err, c.want)
			}
			told := b.told(err)
			if told.State != pb.UpdateState_UPDATE_STATE_FAILED || told.Error == "" || told.CurrentVersion != b.config.Version {
				t.Error(told)
			}
			b.untouched()
		})
	}
	for _, version := range []string{"a/b", "x/../../y", long, "", "1", "1.2", "v1.2.3", "1.2.3/", "1.2.3\n", "1.02.3", "1.2.3-"} {
		t.Run(fmt.Sprintf("version %.20q", version), func(t *testing.T) {
			b := newBench(t, nil)
			list := b.chunks(works, "1.1.0")
			list[0].TargetVersion = version
			if reply, err := b.send(list...); !errors.Is(err, fs.ErrInvalid) || len(err.Error()) > 200 {
				t.Error(reply, err)
			}
			b.untouched()
		})
	}
}

// An older version is installed where the sender says so and the configuration allows it, and one that differs in its build
// alone is not older.
func TestDowngradeWhenAsked(t *testing.T) {
	for _, allowed := range []bool{true, false} {
		b := newBench(t, func(c *Config) { c.Version, c.Downgrades = "1.2.0", allowed })
		list := b.chunks(works, "1.1.0")
		list[0].AllowDowngrade = true
		if reply, err := b.send(list...); (err == nil) != allowed {
			t.Error(allowed, reply, err)
		}
	}
	b := newBench(t, func(c *Config) { c.Version = "1.1.0+one" })
	if reply, err := b.send(b.chunks(works, "1.1.0+two")...); err != nil {
		t.Error(reply, err)
	}
}

// What root did not make where programs are put together is not used, and a link there leads nowhere.
func TestPlantedFiles(t *testing.T) {
	for name, plant := range map[string]func(stage, victim string) error{
		"a link in place of the directory": func(stage, victim string) error { return os.Symlink(filepath.Dir(victim), stage) },
		"a file in place of the directory": func(stage, _ string) error { return os.WriteFile(stage, nil, 0o600) },
		"a directory that others may use":  func(stage, _ string) error { return os.Mkdir(stage, 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			victim := filepath.Join(t.TempDir(), programName)
			if err := errors.Join(os.WriteFile(victim, []byte("mine"), 0o600), plant(stagePath(b.config.Program), victim)); err != nil {
				t.Fatal(err)
			}
			if reply, err := b.send(b.chunks(works, "1.1.0")...); !errors.Is(err, fault.ErrRefused) {
				t.Error(reply, err)
			}
			if text, err := os.ReadFile(victim); err != nil || string(text) != "mine" {
				t.Errorf("%q %v", text, err)
			}
			if trial, err := Trial(b.config.State); trial != nil || err != nil {
				t.Error(trial, err)
			}
		})
	}
	t.Run("a link in the directory", func(t *testing.T) {
		b := newBench(t, nil)
		victim, stage := filepath.Join(t.TempDir(), "victim"), stagePath(b.config.Program)
		err := errors.Join(os.WriteFile(victim, []byte("mine"), 0o600), os.Mkdir(stage, 0o700))
		err = errors.Join(err, os.Symlink(victim, filepath.Join(stage, programName)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.send(b.chunks(works, "1.1.0")...); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(victim); err != nil || string(text) != "mine" {
			t.Errorf("%q %v", text, err)
		}
		if info, err := os.Lstat(filepath.Join(stage, programName)); err != nil || info.Mode() != 0o755 {
			t.Error(info, err)
		}
	})
	t.Run("a directory of the program that others may write", func(t *testing.T) {
		b := newBench(t, nil)
		if err := os.Chmod(filepath.Dir(b.config.Program), 0o777); err != nil {
			t.Fatal(err)
		}
		if reply, err := b.send(b.chunks(works, "1.1.0")...); !errors.Is(err, fault.ErrRefused) {
			t.Error(reply, err)
		}
		b.untouched()
	})
}
