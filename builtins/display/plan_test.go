package display

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/display/outputs"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// monitors are outputs as they would be listed: A, B and C in a row, of which C is off.
func monitors(system string) *pb.ListDisplaysResponse {
	modes := func(current string) (list []*pb.DisplayMode) {
		for _, size := range []string{"1024x768", "800x600", "1920x1080"} {
			m := &pb.DisplayMode{Refresh: 60, Current: size == current, Preferred: size == "1920x1080"}
			fmt.Sscanf(size, "%dx%d", &m.Width, &m.Height)
			list = append(list, m)
		}
		return list
	}
	anySize := system != "gnome"
	return &pb.ListDisplaysResponse{System: system, Scaled: anySize, CanScale: system != "x11", Outputs: []*pb.DisplayOutput{
		{
			Name: "A", Enabled: true, Width: 1024, Height: 768, Refresh: 60, Scale: 1, Primary: true,
			Modes: modes("1024x768"), AnySize: anySize,
		},
		{
			Name: "B", Enabled: true, Width: 800, Height: 600, Refresh: 60, Scale: 1, X: 1024,
			Modes: modes("800x600"), AnySize: anySize,
		},
		{Name: "C", Scale: 1, Modes: modes(""), AnySize: anySize},
	}}
}

// settings reads "A 1920x1080 +0+0 scale=2 dpi=96 hz=50 on off primary; B …".
func settings(t *testing.T, words string) (list []*pb.DisplaySetting) {
	t.Helper()
	for part := range strings.SplitSeq(words, ";") {
		fields := strings.Fields(part)
		s := &pb.DisplaySetting{Name: fields[0]}
		for _, word := range fields[1:] {
			var x, y int32
			on := word == "on"
			switch {
			case on, word == "off":
				s.Enabled = &on
			case word == "primary":
				s.Primary = true
			case strings.HasPrefix(word, "scale="):
				fmt.Sscanf(word, "scale=%g", &s.Scale)
			case strings.HasPrefix(word, "dpi="):
				fmt.Sscanf(word, "dpi=%d", &s.Dpi)
			case strings.HasPrefix(word, "hz="):
				fmt.Sscanf(word, "hz=%g", &s.Refresh)
			case word[0] == '+' || word[0] == '-':
				if n, _ := fmt.Sscanf(word, "%d%d", &x, &y); n != 2 {
					t.Fatalf("%q", word)
				}
				s.X, s.Y = &x, &y
			default:
				if n, _ := fmt.Sscanf(word, "%dx%d", &s.Width, &s.Height); n != 2 {
					t.Fatalf("%q", word)
				}
			}
		}
		list = append(list, s)
	}
	return list
}

func summary(list []*pb.DisplaySetting) string {
	var words []string
	for _, s := range list {
		word := s.Name + " off"
		if s.GetEnabled() {
			word = fmt.Sprintf("%s %dx%d+%d+%d", s.Name, s.Width, s.Height, s.GetX(), s.GetY())
			if s.Scale != 1 {
				word += fmt.Sprintf("*%g", s.Scale)
			}
			if s.Primary {
				word += " primary"
			}
		}
		words = append(words, word)
	}
	return strings.Join(words, "; ")
}

func TestPlan(t *testing.T) {
	for _, c := range []struct{ system, asked, want string }{
		{"wlroots", "A 1024x768", "unchanged"},
		{"wlroots", "A 1920x1080", "A 1920x1080+0+0 primary; B 800x600+1920+0; C off"},
		{"wlroots", "A 1111x777", "A 1111x777+0+0 primary; B 800x600+1111+0; C off"},
		{"wlroots", "B 1920x1080", "A 1024x768+0+0 primary; B 1920x1080+1024+0; C off"},
		{"wlroots", "A scale=2", "A 1024x768+0+0*2 primary; B 800x600+512+0; C off"},
		{"wlroots", "A dpi=192", "A 1024x768+0+0*2 primary; B 800x600+512+0; C off"},
		{"wlroots", "A dpi=110", "A 1024x768+0+0*1.25 primary; B 800x600+819+0; C off"},
		{"x11", "A dpi=192", "A 1024x768+0+0 primary; B 800x600+1024+0; C off"},
		{"wlroots", "C on", "A 1024x768+0+0 primary; B 800x600+1024+0; C 1920x1080+1824+0"},
		{"wlroots", "A off", "A off; B 800x600+0+0 primary; C off"},
		{"x11", "A off; B 1920x1080; C on", "A off; B 1920x1080+0+0 primary; C 1920x1080+1920+0"},
		{"x11", "B 800x600 primary; A 1024x768", "A 1024x768+800+0; B 800x600+0+0 primary; C off"},
		{"x11", "C on primary; A 1024x768", "A 1024x768+1920+0; B 800x600+2944+0; C 1920x1080+0+0 primary"},
		{"x11", "A +0+600; B +0+0", "A 1024x768+0+600 primary; B 800x600+0+0; C off"},
		{"x11", "A +100+100; B +1124+100", "unchanged"},
		{"x11", "B -800+0", "A 1024x768+800+0 primary; B 800x600+0+0; C off"},
		{"x11", "A +0+0 800x600; B +0+0", "A 800x600+0+0 primary; B 800x600+0+0; C off"},
		{"windows", "B 800x600 primary; A 1024x768", "A 1024x768+800+0; B 800x600+0+0 primary; C off"},
		{"windows", "A +0+0; B -800+0", "A 1024x768+0+0 primary; B 800x600+-800+0; C off"},
		{"gnome", "A 1920x1080 hz=60", "A 1920x1080+0+0 primary; B 800x600+1920+0; C off"},
	} {
		list := monitors(c.system)
		got, changed, err := plan(list, settings(t, c.asked), false)
		text := summary(got)
		if err == nil && !changed {
			text = "unchanged"
		}
		if c.system == "x11" && strings.Contains(c.asked, "dpi") && (!changed || got[0].Dpi != 192) {
			t.Errorf("%s: the dpi are not to be set", c.asked)
		}
		if err != nil || text != c.want {
			t.Errorf("%s, %s:\n%s, %v, not\n%s", c.system, c.asked, text, err, c.want)
		}
		// What was planned is planned again as nothing to do.
		absolute := !strings.Contains(c.asked, "dpi") && !strings.Contains(c.asked, "-800")
		if again, changed, err := plan(planned(list, got), settings(t, c.asked), false); absolute && (err != nil || changed) {
			t.Errorf("%s, %s: a second time %s, %v", c.system, c.asked, summary(again), err)
		}
		// And the former state comes back.
		back, _, err := plan(planned(list, got), outputs.Settings(list.Outputs), true)
		if want := summary(outputs.Settings(list.Outputs)); err != nil || summary(back) != want {
			t.Errorf("%s, %s: taken back %s, %v, not %s", c.system, c.asked, summary(back), err, want)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	for _, c := range []struct{ system, asked, code, words string }{
		{"x11", "A 0x600", "invalid", "A: 0x600 is no size from 64x64 to 16384x16384"},
		{"x11", "A 65535x65535", "invalid", "65535x65535 is no size"},
		{"x11", "A 63x64", "invalid", "no size"},
		{"x11", "A 4294967295x768", "invalid", "no size"},
		{"x11", "D 800x600", "not_found", `there is no output "D"; there are A, B, C`},
		{"x11", "A 800x600; A on", "invalid", "named twice"},
		{"x11", "A off; B off", "refused", "at least one output must stay on"},
		{"x11", "A primary; B primary", "invalid", "both A and B"},
		{"x11", "A scale=2", "unsupported", "X11 has no scale for each output: give dpi"},
		{"wlroots", "A primary", "unsupported", "no primary output"},
		{"wlroots", "A scale=100", "invalid", "a scale of 100"},
		{"wlroots", "A scale=2 dpi=96", "invalid", "give one of them"},
		{"wlroots", "A dpi=20000", "invalid", "20000 dpi"},
		{"wlroots", "A hz=10000", "invalid", "10000 Hz"},
		{"wlroots", "A off scale=2", "invalid", "it is off"},
		{"wlroots", "A +0+0; B +500+0", "invalid", "A (1024x768 at 0,0) and B (800x600 at 500,0) overlap"},
		{"wlroots", "A +40000+0", "invalid", "40000,0"},
		{"gnome", "A 1111x777", "unsupported", "GNOME takes no size that the output does not list, such as 1111x777; " +
			"it lists 1024x768, 800x600, 1920x1080"},
		{"gnome", "A 800x600 hz=75", "unsupported", "800x600@75; it lists 1024x768@60"},
	} {
		_, _, err := plan(monitors(c.system), settings(t, c.asked), false)
		if fault.Code(err) != c.code || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s, %s: %v", c.system, c.asked, err)
		}
	}
	nan := settings(t, "A 800x600")
	zero := 0.0
	nan[0].Scale = zero / zero
	if _, _, err := plan(monitors("wlroots"), nan, false); fault.Code(err) != "invalid" {
		t.Errorf("a scale that is no number: %v", err)
	}
	if _, err := primary(&pb.ListDisplaysResponse{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no output: %v", err)
	}
}
