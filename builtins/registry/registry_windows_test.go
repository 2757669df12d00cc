package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows/registry"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// scratch is the name of a key that is the test's own, and is not there.
func scratch(t *testing.T) string {
	t.Helper()
	key := fmt.Sprintf(`HKLM\SOFTWARE\Quantix Test %d`, time.Now().UnixNano())
	t.Cleanup(func() {
		for _, view := range []uint32{view64, view32} {
			p, err := parsePath(key, view)
			if err == nil {
				err = p.deleteTree(0)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	return key
}

func call(t *testing.T, c *builtins.Call, name string, in proto.Message) (proto.Message, error) {
	t.Helper()
	for _, op := range New(&guest.Guest{Live: true}).Room().Ops {
		if op.Name == name {
			return op.Call(t.Context(), c, in)
		}
	}
	t.Fatal("there is no", name)
	return nil, nil
}

func set(t *testing.T, c *builtins.Call, in *pb.RegistrySetArgs, want bool) {
	t.Helper()
	out, err := call(t, c, "registry.set", in)
	if err != nil || out.(*pb.Changed).Changed != want {
		t.Fatalf("set %v: %v, want %v: %v", in, out, want, err)
	}
}

func remove(t *testing.T, c *builtins.Call, in *pb.RegistryRemoveArgs, want bool) {
	t.Helper()
	out, err := call(t, c, "registry.remove", in)
	if err != nil || out.(*pb.Changed).Changed != want {
		t.Fatalf("remove %v: %v, want %v: %v", in, out, want, err)
	}
}

func get(t *testing.T, c *builtins.Call, in *pb.RegistryGetArgs) *pb.LuaValue {
	t.Helper()
	out, err := call(t, c, "registry.get", in)
	if err != nil {
		t.Fatal(in, err)
	}
	return out.(*pb.LuaValue)
}

func text(s string) *pb.LuaValue { return stringValue([]byte(s)) }

func list(items ...string) *pb.LuaValue {
	table := &pb.LuaTable{List: true}
	for _, item := range items {
		table.Array = append(table.Array, text(item))
	}
	return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: table}}
}

// Each type is stored as Windows reads it, comes back as it was given, and is not set a second time.
func TestTypes(t *testing.T) {
	key := scratch(t)
	c := &builtins.Call{}
	for _, v := range []struct {
		kind  string
		value *pb.LuaValue
		want  uint32
	}{
		{"", text("ü 😀"), registry.SZ}, {"sz", text(""), registry.SZ}, {"REG_EXPAND_SZ", text("%SystemRoot%"), registry.EXPAND_SZ},
		{"multi_sz", list("a", "b c", "ü"), registry.MULTI_SZ}, {"", list(), registry.MULTI_SZ}, {"", numberValue(math.MaxUint32),
			registry.DWORD},
		{"dword", numberValue(0), registry.DWORD}, {"QWORD", numberValue(1 << 53), registry.QWORD}, {"binary", text("\x00\xff"),
			registry.BINARY},
		{"binary", text(""), registry.BINARY},
	} {
		name := "v " + v.kind
		remove(t, c, &pb.RegistryRemoveArgs{Key: key, Name: &name}, mustHave(t, key, name))
		in := &pb.RegistrySetArgs{Key: key, Name: name, Value: v.value, Type: v.kind}
		set(t, c, in, true)
		set(t, c, in, false)
		if got := get(t, c, &pb.RegistryGetArgs{Key: strings.ToLower(key), Name: strings.ToUpper(name)}); !proto.Equal(got, v.value) {
			t.Errorf("%s: %v, want %v", v.kind, got, v.value)
		}
		k, err := registry.OpenKey(registry.LOCAL_MACHINE, strings.TrimPrefix(key, `HKLM\`),
			registry.QUERY_VALUE|registry.WOW64_64KEY)
		if err != nil {
			t.Fatal(err)
		}
		_, kind, err := k.GetValue(name, nil)
		if kind != v.want || err != nil && !errors.Is(err, registry.ErrShortBuffer) {
			t.Errorf("%s is stored as %d, want %d: %v", v.kind, kind, v.want, err)
		}
		k.Close()
	}
	// A value keeps the type that it has, where that can hold what is given.
	set(t, c, &pb.RegistrySetArgs{Key: key, Name: "kept", Value: text("a"), Type: "expand_sz"}, true)
	set(t, c, &pb.RegistrySetArgs{Key: key, Name: "kept", Value: text("a")}, false)
	set(t, c, &pb.RegistrySetArgs{Key: key, Name: "kept", Value: text("a"), Type: "sz"}, true)
	set(t, c, &pb.RegistrySetArgs{Key: key, Name: "big", Value: text("18446744073709551615"), Type: "qword"}, true)
	if _, err := call(t, c, "registry.get", &pb.RegistryGetArgs{Key: key, Name: "big"}); !errors.Is(err, fault.ErrTooLarge) {
		t.Error(err)
	}
	if got := get(t, c, &pb.RegistryGetArgs{Key: key, Name: "big", Raw: true}); !proto.Equal(got, text(strings.Repeat("\xff",
		8))) {
		t.Error(got)
	}
	for _, bad := range []*pb.RegistrySetArgs{
		{Type: "dword", Value: numberValue(1 << 32)}, {Type: "dword", Value: numberValue(0.5)}, {Type: "dword",
			Value: numberValue(-1)},
		{Type: "sz", Value: numberValue(1)}, {Type: "sz", Value: text("a\x00b")}, {Type: "sz", Value: text("\xff")},
		{Type: "multi_sz", Value: list("a", "")}, {Type: "nosuch", Value: text("x")}, {Value: &pb.LuaValue{}},
		{Type: "qword", Value: text("-1")}, {Type: "binary", Value: list("x")},
	} {
		bad.Key = key
		if _, err := call(t, c, "registry.set", bad); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func mustHave(t *testing.T, key, name string) bool {
	t.Helper()
	return get(t, &builtins.Call{}, &pb.RegistryGetArgs{Key: key, Name: name}).Kind != nil
}

// The views of 32 and 64 bits are two keys.
func TestViews(t *testing.T) {
	key := scratch(t)
	c := &builtins.Call{}
	set(t, c, &pb.RegistrySetArgs{Key: key, Name: "x", Value: text("32"), View: 32}, true)
	if got := get(t, c, &pb.RegistryGetArgs{Key: key, Name: "x"}); got.Kind != nil {
		t.Error(got)
	}
	set(t, c, &pb.RegistrySetArgs{Key: key, Name: "x", Value: text("64"), View: 64}, true)
	if got := get(t, c, &pb.RegistryGetArgs{Key: key, Name: "x", View: 32}); !proto.Equal(got, text("32")) {
		t.Error(got)
	}
	remove(t, c, &pb.RegistryRemoveArgs{Key: key, Recursive: true, View: 32}, true)
	remove(t, c, &pb.RegistryRemoveArgs{Key: key, Recursive: true, View: 32}, false)
	if got := get(t, c, &pb.RegistryGetArgs{Key: key, Name: "x"}); !proto.Equal(got, text("64")) {
		t.Error(got)
	}
}

// A key with something in it goes only if that is said, and a hive never.
func TestRemoveRefuses(t *testing.T) {
	key := scratch(t)
	c := &builtins.Call{}
	set(t, c, &pb.RegistrySetArgs{Key: key + `\below`, Value: text("default")}, true)
	if _, err := call(t, c, "registry.remove", &pb.RegistryRemoveArgs{Key: key}); !errors.Is(err, fault.ErrRefused) {
		t.Error(err)
	}
	if _, err := call(t, c, "registry.remove", &pb.RegistryRemoveArgs{Key: `HKLM\SOFTWARE`, Recursive: true}); !errors.Is(err,
		fault.ErrRefused) {
		t.Error(err)
	}
	name := ""
	remove(t, c, &pb.RegistryRemoveArgs{Key: key + `\below`, Name: &name}, true)
	remove(t, c, &pb.RegistryRemoveArgs{Key: key + `\below`}, true)
	remove(t, c, &pb.RegistryRemoveArgs{Key: key}, true)
	remove(t, c, &pb.RegistryRemoveArgs{Key: key}, false)
	remove(t, c, &pb.RegistryRemoveArgs{Key: key, Name: &name}, false)
}

// undos is a transaction that keeps what is announced to it.
type undos struct {
	builtins.Tx
	list []*pb.RegistryRestore
}

func (u *undos) Undo(_ context.Context, op string, args proto.Message) error {
	if op != restoreOp {
		return errors.New(op)
	}
	u.list = append(u.list, proto.Clone(args).(*pb.RegistryRestore))
	return nil
}

// image is all that is below a key of the test; nil: it is not there.
func image(t *testing.T, key string) *pb.RegistryKey {
	t.Helper()
	p, err := parsePath(key, 0)
	if err != nil {
		t.Fatal(err)
	}
	left := maxTree
	tree, err := p.readTree(&left, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	sort(tree)
	return tree
}

func sort(tree *pb.RegistryKey) {
	slices.SortFunc(tree.Values, func(a, b *pb.RegistryValue) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(tree.Keys, func(a, b *pb.RegistryKey) int { return strings.Compare(a.Name, b.Name) })
	for _, k := range tree.Keys {
		sort(k)
	}
}

// act does something at random below a key.
func act(t *testing.T, c *builtins.Call, random *rand.Rand, key string) {
	t.Helper()
	for range random.IntN(3) {
		key += fmt.Sprintf(`\k%d`, random.IntN(3))
	}
	name := fmt.Sprintf("v%d", random.IntN(3))
	switch random.IntN(5) {
	case 0, 1:
		_, err := call(t, c, "registry.set", &pb.RegistrySetArgs{Key: key, Name: name, Value: numberValue(float64(random.IntN(4)))})
		if err != nil {
			t.Fatal(err)
		}
	case 2:
		_, err := call(t, c, "registry.set", &pb.RegistrySetArgs{Key: key, Name: name, Value: text(strings.Repeat("x",
			random.IntN(4))), Type: "sz"})
		if err != nil {
			t.Fatal(err)
		}
	case 3:
		if _, err := call(t, c, "registry.remove", &pb.RegistryRemoveArgs{Key: key, Name: &name}); err != nil {
			t.Fatal(err)
		}
	case 4:
		if _, err := call(t, c, "registry.remove", &pb.RegistryRemoveArgs{Key: key, Recursive: true}); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever was done is as it was when its inverses have run in reverse, each of them twice.
func TestUndoOfRandomChanges(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 0))
		key := scratch(t)
		c := &builtins.Call{}
		for range random.IntN(8) {
			act(t, c, random, key)
		}
		before := image(t, key)
		tx := &undos{}
		for range 10 {
			act(t, &builtins.Call{Tx: tx}, random, key)
		}
		for _, undo := range slices.Backward(tx.list) {
			for range 2 {
				if _, err := call(t, &builtins.Call{Undo: true}, restoreOp, undo); err != nil {
					t.Fatal(seed, err)
				}
			}
		}
		if after := image(t, key); !proto.Equal(after, before) {
			t.Fatalf("seed %d: %v, was %v", seed, after, before)
		}
	}
}

// An inverse bears that its change never happened.
func TestUndoOfNothing(t *testing.T) {
	key := scratch(t)
	p, err := parsePath(key+`\a\b`, 0)
	if err != nil {
		t.Fatal(err)
	}
	tx := &undos{}
	if err := p.announceValue(t.Context(), &builtins.Call{Tx: tx}, "x", nil); err != nil {
		t.Fatal(err)
	}
	if tx.list[0].Made != key {
		t.Errorf("%v", tx.list[0])
	}
	if _, err := call(t, &builtins.Call{}, restoreOp, tx.list[0]); err != nil {
		t.Error(err)
	}
	if tree := image(t, key); tree != nil {
		t.Error(tree)
	}
	// What others put into a key that was made is told, and stays.
	set(t, &builtins.Call{}, &pb.RegistrySetArgs{Key: key + `\a\b`, Name: "x", Value: text("made")}, true)
	set(t, &builtins.Call{}, &pb.RegistrySetArgs{Key: key + `\a`, Name: "theirs", Value: text("x")}, true)
	if _, err := call(t, &builtins.Call{}, restoreOp, tx.list[0]); !errors.Is(err, fault.ErrChanged) {
		t.Error(err)
	}
	if got := get(t, &builtins.Call{}, &pb.RegistryGetArgs{Key: key + `\a`, Name: "theirs"}); got.Kind == nil {
		t.Error("it is gone")
	}
}

// A dry run predicts what the run does, step by step, and changes nothing.
func TestDryRunForetells(t *testing.T) {
	for seed := range uint64(20) {
		key := scratch(t)
		random := rand.New(rand.NewPCG(seed, 1))
		for range random.IntN(8) {
			act(t, &builtins.Call{}, random, key)
		}
		before := image(t, key)
		run := func(c *builtins.Call) (told []string) {
			c.Changed = func(change *pb.Change) { told = append(told, change.Op+" "+change.Target+" "+change.Action) }
			random := rand.New(rand.NewPCG(seed, 2))
			for range 12 {
				act(t, c, random, key)
				told = append(told, fmt.Sprint(get(t, c, &pb.RegistryGetArgs{Key: key + `\k1`, Name: "v1"})))
			}
			return told
		}
		foretold := run(&builtins.Call{DryRun: &builtins.DryRun{}})
		if after := image(t, key); !proto.Equal(after, before) {
			t.Fatalf("seed %d: a dry run made %v of %v", seed, after, before)
		}
		if done := run(&builtins.Call{}); !slices.Equal(done, foretold) {
			t.Fatalf("seed %d:\n%q, foretold were\n%q", seed, done, foretold)
		}
	}
}

// A tree that could not be undone is not removed.
func TestTreeThatIsTooLarge(t *testing.T) {
	key := scratch(t)
	c := &builtins.Call{}
	for i := range 3 {
		set(t, c, &pb.RegistrySetArgs{Key: key, Name: fmt.Sprint(i), Type: "binary", Value: text(strings.Repeat("x", maxTree/2))},
			true)
	}
	if _, err := call(t, c, "registry.remove", &pb.RegistryRemoveArgs{Key: key, Recursive: true}); !errors.Is(err,
		fault.ErrTooLarge) {
		t.Error(err)
	}
	if image := mustHave(t, key, "2"); !image {
		t.Error("it is gone all the same")
	}
}
