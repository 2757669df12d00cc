package bounds

import (
	"errors"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestCheck(t *testing.T) {
	deep := &pb.LuaValue{}
	for range 20 {
		deep = &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: &pb.LuaTable{Array: []*pb.LuaValue{deep}}}}
	}
	scales := make([]float64, 200) // whose bytes are all over 127
	for i := range scales {
		scales[i] = math.Float64frombits(0x8080808080808080)
	}
	for name, c := range map[string]struct {
		message proto.Message
		within  bool
	}{
		"small":   {&pb.ExecuteRequest{Command: "true", Args: []string{"a", "b"}}, true},
		"strings": {&pb.ExecuteRequest{Args: make([]string, 101)}, false},
		"packed":  {&pb.DisplayMode{Scales: scales}, false},
		"deep":    {deep, false},
	} {
		b, err := proto.Marshal(c.message)
		if err != nil {
			t.Fatal(err)
		}
		limits := Limits{What: "it", Elements: 100, Depth: 16}
		if err := limits.Check(b, c.message.ProtoReflect().Descriptor().Fields()); (err == nil) != c.within || err != nil && !errors.Is(err, fault.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
		if len(b) > 1 {
			if err := limits.Check(b[:len(b)-1], c.message.ProtoReflect().Descriptor().Fields()); c.within && !errors.Is(err, ErrMalformed) {
				t.Errorf("%s, cut: %v", name, err)
			}
		}
	}
}
