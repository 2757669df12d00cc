package vmtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Package builds the Debian package of this tree's agent under a version into dir and returns its path. dir also gets the
// package of the host's tool.
func Package(ctx context.Context, dir, version string) (string, error) {
	return filepath.Join(dir, "quantix-kvm-agent_"+version+"_amd64.deb"), build(ctx, dir, version, "deb")
}

// Packages builds packages of this tree under a version into dir, those of the packagers, which are deb, rpm, apk and tar;
// none: all.
func Packages(ctx context.Context, dir, version string, packagers ...string) error {
	return build(ctx, dir, version, packagers...)
}

func build(ctx context.Context, dir, version string, packagers ...string) error {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	script := filepath.Join(string(bytes.TrimSpace(root)), "cmd/quantix-kvm-agent/package/build.sh")
	cmd := exec.CommandContext(ctx, script, append([]string{dir, "amd64", version, "-s -w -X main.version=" + version}, packagers...)...)
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the package: %w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}

// Unpack puts the files of a package into dir, as root of a guest would find them.
func Unpack(ctx context.Context, deb, dir string) error {
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w\n%s", deb, err, bytes.TrimSpace(out))
	}
	return nil
}
