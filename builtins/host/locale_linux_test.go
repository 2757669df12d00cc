package host

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (g *tree) put(name, content string) {
	g.t.Helper()
	path := filepath.Join(g.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *tree) is(name string, in proto.Message, want string) {
	g.t.Helper()
	if out, err := g.do(name, in); err != nil || string(out.GetString_()) != want {
		g.t.Errorf("%s is %v, want %s, error %v", name, out, want, err)
	}
}

// archive is one with the names of locales alone, as localedef lays it out.
func archive(names ...string) string {
	text := strings.Join(names, "\x00") + "\x00"
	head := make([]byte, 56)
	for at, n := range map[int]int{0: archiveMagic, stringsOffset: 64, stringsUsed: len(text), 28: 1024} {
		binary.LittleEndian.PutUint32(head[at:], uint32(n))
	}
	return string(head) + "12345678" + text
}

func TestLocale(t *testing.T) {
	g := newTree(t)
	g.is("host.locale", &pb.LocaleArgs{}, "C")
	if _, err := g.do("host.locale", &pb.LocaleArgs{New: "de_AT.UTF-8"}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	g.put("usr/lib/locale/locale-archive", archive("de_AT.utf8", "en_US.iso88591"))
	if err := os.MkdirAll(filepath.Join(g.dir, "usr/lib/locale/nl_NL.utf8@euro"), 0o755); err != nil {
		t.Fatal(err)
	}
	g.sets("host.locale", &pb.LocaleArgs{New: "de_AT.UTF-8"}, "/etc/locale.conf")
	g.holds("etc/locale.conf", "LANG=de_AT.UTF-8\n")
	g.is("host.locale", &pb.LocaleArgs{}, "de_AT.UTF-8")
	g.put("etc/locale.conf", "# ours\nLANG=\"de_AT.UTF-8\"\nLC_TIME=C")
	if out, err := g.do("host.locale", &pb.LocaleArgs{New: "de_AT.UTF-8"}); err != nil || out.GetBoolean() {
		t.Error("quotes make another value of it:", out, err)
	}
	g.sets("host.locale", &pb.LocaleArgs{New: "nl_NL.UTF-8@euro"}, "/etc/locale.conf")
	g.holds("etc/locale.conf", "# ours\nLANG=nl_NL.UTF-8@euro\nLC_TIME=C")
	g.sets("host.locale", &pb.LocaleArgs{New: "C.UTF-8"}, "/etc/locale.conf")
	for _, wrong := range []string{"x\nLANG=y", "../x", "a b", "$(id)", strings.Repeat("a", 65), "-h"} {
		if _, err := g.do("host.locale", &pb.LocaleArgs{New: wrong}); !errors.Is(err, fs.ErrInvalid) || g.kept != nil {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	for _, wrong := range []string{"de_AT", "en_US.UTF-8", "nl_NL.UTF-8", "fr_FR.UTF-8"} {
		if _, err := g.do("host.locale", &pb.LocaleArgs{New: wrong}); !errors.Is(err, fs.ErrNotExist) || g.kept != nil {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}

// Debian has a file of its own, which may be a link to the common one.
func TestLocaleOfDebian(t *testing.T) {
	g := newTree(t)
	g.put("etc/debian_version", "12.1\n")
	if err := os.MkdirAll(filepath.Join(g.dir, "etc/default"), 0o755); err != nil {
		t.Fatal(err)
	}
	g.sets("host.locale", &pb.LocaleArgs{New: "C.UTF-8"}, "/etc/default/locale")
	g.holds("etc/default/locale", "LANG=C.UTF-8\n")
	g.is("host.locale", &pb.LocaleArgs{}, "C.UTF-8")
	g.put("etc/locale.conf", "LANG=C\n")
	g.sets("host.locale", &pb.LocaleArgs{New: "POSIX"}, "/etc/locale.conf", "/etc/default/locale")
	link := filepath.Join(g.dir, "etc/default/locale")
	if err := errors.Join(os.Remove(link), os.Symlink("../locale.conf", link)); err != nil {
		t.Fatal(err)
	}
	g.sets("host.locale", &pb.LocaleArgs{New: "C.UTF-8"}, "/etc/locale.conf")
	if target, err := os.Readlink(link); err != nil || target != "../locale.conf" {
		t.Error(target, err)
	}
}

// With LC_ALL beside it LANG is without effect.
func TestLocaleIsOverridden(t *testing.T) {
	for _, file := range []string{"etc/default/locale", "etc/environment"} {
		g := newTree(t)
		g.put("etc/debian_version", "12\n")
		g.put(file, "LC_ALL=\"POSIX\"\n")
		if _, err := g.do("host.locale", &pb.LocaleArgs{New: "C.UTF-8"}); !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "/"+file+": LC_ALL is POSIX") || g.kept != nil {
			t.Error(err)
		}
		g.put(file, "LC_ALL=POSIX # of the administrator\n")
		if _, err := g.do("host.locale", &pb.LocaleArgs{New: "C.UTF-8"}); err == nil || !strings.Contains(err.Error(), "LC_ALL is POSIX there") {
			t.Error(err)
		}
		g.put(file, "#LC_ALL=C\nLC_ALL=C.utf8 # the same\n")
		if _, err := g.do("host.locale", &pb.LocaleArgs{New: "C.UTF-8"}); err != nil {
			t.Error(err)
		}
		g.put(file, "LC_ALL='' # none\n")
		if _, err := g.do("host.locale", &pb.LocaleArgs{New: "C.UTF-8"}); err != nil {
			t.Error(err)
		}
	}
}

// What this machine's own C library lists is found, and nothing else.
func TestLocalesOfThisMachine(t *testing.T) {
	out, err := exec.Command("locale", "-a").Output()
	if err != nil {
		t.Skip("needs the program locale: ", err)
	}
	root, err := fsys.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range append(strings.Fields(string(out)), "C.UTF-8") {
		if there, err := hasLocale(root, name); err != nil || !there {
			t.Errorf("%s: %v %v", name, there, err)
		}
	}
	if there, err := hasLocale(root, "xx_XX.UTF-8"); err != nil || there {
		t.Error(there, err)
	}
}

func TestKeymap(t *testing.T) {
	g := newTree(t)
	g.is("host.keymap", &pb.KeymapArgs{}, "us")
	if _, err := g.do("host.keymap", &pb.KeymapArgs{New: "de"}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	g.put("usr/share/kbd/keymaps/i386/qwertz/de-latin1.map.gz", "")
	g.put("usr/share/kbd/keymaps/README", "")
	g.put("usr/share/kbd/keymaps/i386/qwertz/de.map", "")
	g.sets("host.keymap", &pb.KeymapArgs{New: "de"}, "/etc/vconsole.conf")
	g.holds("etc/vconsole.conf", "KEYMAP=de\n")
	g.put("etc/vconsole.conf", "FONT=eurlatgr\nKEYMAP=us\n")
	g.sets("host.keymap", &pb.KeymapArgs{New: "de-latin1"}, "/etc/vconsole.conf")
	g.holds("etc/vconsole.conf", "FONT=eurlatgr\nKEYMAP=de-latin1\n")
	g.is("host.keymap", &pb.KeymapArgs{}, "de-latin1")
	for wrong, cause := range map[string]error{"README": fs.ErrNotExist, "../de": fs.ErrInvalid, "d\ne": fs.ErrInvalid, "-h": fs.ErrInvalid, "qwertz": fs.ErrNotExist} {
		if _, err := g.do("host.keymap", &pb.KeymapArgs{New: wrong}); !errors.Is(err, cause) || g.kept != nil {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}

// A variant belongs to a layout: it does not outlive it. What cannot be set in both files is set in neither.
func TestKeymapOfDebian(t *testing.T) {
	g := newTree(t)
	const before = "XKBMODEL=\"pc105\"\nXKBLAYOUT=\"us\"\nXKBVARIANT=\"intl\"\n"
	g.put("etc/default/keyboard", before)
	g.put("usr/share/X11/xkb/rules/base.lst", "! model\n  at  old\n\n! layout\n  us  English\n  at  German (Austria)\n\n! variant\n  intl  us: x\n")
	g.sets("host.keymap", &pb.KeymapArgs{New: "at"}, "/etc/default/keyboard")
	g.holds("etc/default/keyboard", "XKBMODEL=\"pc105\"\nXKBLAYOUT=at\nXKBVARIANT=\"\"\n")
	g.is("host.keymap", &pb.KeymapArgs{}, "at")
	if _, err := g.do("host.keymap", &pb.KeymapArgs{New: "intl"}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	g.put("etc/vconsole.conf", "KEYMAP=us\n")
	if _, err := g.do("host.keymap", &pb.KeymapArgs{New: "us"}); !errors.Is(err, fs.ErrNotExist) || g.kept != nil {
		t.Error(err)
	}
	g.holds("etc/vconsole.conf", "KEYMAP=us\n")
}

func TestLocaleOfADryRun(t *testing.T) {
	g := newTree(t)
	g.put("usr/share/kbd/keymaps/de.map", "")
	files, err := g.room.guest.Files.Overlay(filepath.Join(t.TempDir(), "overlay"))
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	g.call.Tx, g.call.DryRun = nil, &builtins.DryRun{Files: files}
	for name, in := range map[string]proto.Message{"host.locale": &pb.LocaleArgs{New: "C.UTF-8"}, "host.keymap": &pb.KeymapArgs{New: "de"}} {
		if out, err := g.do(name, in); err != nil || !out.GetBoolean() || len(g.changes) != 1 || g.changes[0].State != pb.ChangeState_CHANGE_STATE_WOULD {
			t.Errorf("%s: %v, %v, error %v", name, out, g.changes, err)
		}
		if out, err := g.do(name, in); err != nil || out.GetBoolean() {
			t.Errorf("%s again: %v, error %v", name, out, err)
		}
	}
	g.is("host.locale", &pb.LocaleArgs{}, "C.UTF-8")
	for _, file := range []string{"etc/locale.conf", "etc/vconsole.conf"} {
		if _, err := os.Lstat(filepath.Join(g.dir, file)); !errors.Is(err, fs.ErrNotExist) {
			t.Error(file, err)
		}
	}
	if _, err := invoke(t, New(&guest.Guest{}, ""), "host.keymap", &pb.KeymapArgs{New: "de"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}
