package main

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestDisplaySettings(t *testing.T) {
	on, off := true, false
	x, y := int32(-10), int32(1080)
	for text, want := range map[string]*pb.DisplaySetting{
		"DP-1=1920x1080":                  {Name: "DP-1", Enabled: &on, Width: 1920, Height: 1080},
		"DP-1=1920x1080@59.94*1.5":        {Name: "DP-1", Enabled: &on, Width: 1920, Height: 1080, Refresh: 59.94, Scale: 1.5},
		"a=640x480*2-10+1080,primary":     {Name: "a", Enabled: &on, Width: 640, Height: 480, Scale: 2, X: &x, Y: &y, Primary: true},
		"DP-1=on,primary":                 {Name: "DP-1", Enabled: &on, Primary: true},
		"DP-1=off":                        {Name: "DP-1", Enabled: &off},
		"DP-1=999999999x999999999":        {Name: "DP-1", Enabled: &on, Width: 999999999, Height: 999999999},
		"DP-1":                            nil,
		"=640x480":                        nil,
		"DP-1=640":                        nil,
		"DP-1=640x480@":                   nil,
		"DP-1=640x480*-2":                 nil,
		"DP-1=640x480+1":                  nil,
		"DP-1=off,primary":                nil,
		"DP-1=-1x480":                     nil,
		"DP-1=640x99999999999999999999":   nil,
		"DP-1=640x480 ":                   nil,
		"DP-1=640x480@60*2+0+0,secondary": nil,
	} {
		got, err := parseSetting(text)
		if want == nil {
			var f *failure
			if !errors.As(err, &f) || f.code != exitUsage {
				t.Errorf("%s: %v, %v", text, got, err)
			}
			continue
		}
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	if _, err := parseDisplaySize("640x480+0+0"); err == nil {
		t.Error("a size has a place")
	}
}
