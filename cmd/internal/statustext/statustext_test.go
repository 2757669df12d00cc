package statustext

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestRowsTellEverything(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-d)) }
	s := &pb.GetStatusResponse{
		Version: "1.2.3", Commit: "abc", Pid: 42, UptimeSeconds: 3661, State: pb.AgentState_AGENT_STATE_RECOVERING, Reason: "it must",
		Ports:     []*pb.PortStatus{{Name: "port.0", TotalSessions: 7, Sessions: []*pb.SessionStatus{{Since: at(time.Minute), Framing: "qtx1"}}}},
		LastHeard: at(2 * time.Second), InFlight: 3, Now: timestamppb.New(now), ResidentBytes: 10 << 20,
		Journal: &pb.JournalStatus{
			Error: "disk", Open: &pb.TransactionInfo{TransactionId: "tx1", Phase: "rolling_back", Script: &pb.ScriptRef{Name: "motd"}},
			Recovered: []*pb.StatusLine{{At: at(0), Level: "warn", Message: "tx0 was interrupted"}}, Kept: []string{"/state/kept/tx9"},
		},
		Sandbox: []*pb.SandboxLayer{{Name: "seccomp"}, {Name: "landlock", Missing: "old kernel"}},
		Config:  &pb.ConfigStatus{Path: "/etc/x", Loaded: at(time.Hour), Error: "line 2", Warnings: []string{"spelt"}, NeedsRestart: []string{"framing"}},
		Errors:  []*pb.StatusLine{{At: at(0), Level: "error", Message: "went wrong"}},
	}
	var text strings.Builder
	for _, row := range Rows(s) {
		fmt.Fprintln(&text, strings.Join(row, " = "))
	}
	for _, want := range []string{
		"state = recovering: it must", "agent = 1.2.3 abc", "42, up 1h1m1s, 10.0 MiB", "last heard = 2s ago", "3 under way",
		"port.0: a host, 7 so far", "a host since 1m0s ago, last heard never, qtx1", "no transaction can begin: disk",
		"tx1: rolling back, motd", "not undone = /state/kept/tx9 has", "recovered = 2026-01-02 03:04:05Z warn: tx0 was interrupted", "seccomp: yes", "landlock: no: old kernel",
		"/etc/x, read 1h0m0s ago", "faults: line 2", "warning: spelt", "waits for a restart: framing", "error: went wrong",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &text)
		}
	}
	s.Config = &pb.ConfigStatus{Path: "/etc/x", Loaded: at(time.Hour), Absent: true}
	if rows := configRows(s); rows[0][1] != "/etc/x, not there 1h0m0s ago, so all is as by default" {
		t.Error(rows)
	}
	if Rows(&pb.GetStatusResponse{}) == nil { // an agent that tells nothing breaks nothing
		t.Error("no rows")
	}
}

func TestUpdateRows(t *testing.T) {
	now := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	for want, u := range map[string]*pb.UpdateStatus{
		"update = to 1.1.0: a host is awaited for 9s; else 1.0.0 comes back": {
			State: "applying", Version: "1.1.0", FormerVersion: "1.0.0", RemainingMs: 9000},
		"update = downloading 1.1.0, 40 %":                        {State: "downloading", Version: "1.1.0", ProgressPercent: 40},
		"update = 1.0.0 is about to come back":                    {State: "rolling_back", FormerVersion: "1.0.0"},
		"last update = 1.1.0 was taken back, 0s ago: it hung":     {State: "failed", Last: &pb.UpdateOutcome{Version: "1.1.0", Error: "it hung", At: now}},
		"last update = 1.1.0 installed in place of 1.0.0, 0s ago": {State: "complete", Last: &pb.UpdateOutcome{Version: "1.1.0", FormerVersion: "1.0.0", Confirmed: true, At: now}},
	} {
		rows := updateRows(&pb.GetStatusResponse{Now: now, Update: u})
		if len(rows) != 1 || strings.Join(rows[0], " = ") != want {
			t.Errorf("%q, want %q", rows, want)
		}
	}
	if rows := updateRows(&pb.GetStatusResponse{}); rows != nil {
		t.Error(rows)
	}
}

func TestLine(t *testing.T) {
	for want, s := range map[string]*pb.GetStatusResponse{
		"waiting: for a port":                  {State: pb.AgentState_AGENT_STATE_WAITING, Reason: "for a port"},
		"refusing: a; b":                       {State: pb.AgentState_AGENT_STATE_REFUSING, Reason: "a\nb"},
		"serving p.0 (no host), p.1 (2 hosts)": {State: pb.AgentState_AGENT_STATE_SERVING, Ports: []*pb.PortStatus{{Name: "p.0"}, {Name: "p.1", Sessions: make([]*pb.SessionStatus, 2)}}},
		"serving unix:/run/x (a host)":         {State: pb.AgentState_AGENT_STATE_SERVING, Ports: []*pb.PortStatus{{Name: "unix:/run/x", Sessions: make([]*pb.SessionStatus, 1)}}},
	} {
		if got := Line(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestTheDesktopInFront(t *testing.T) {
	for _, c := range []struct {
		desktop *pb.DesktopStatus
		want    string
	}{
		{nil, ""}, {&pb.DesktopStatus{Reason: "there is none"}, ""},
		{&pb.DesktopStatus{Type: "x11", User: "alice", Seat: "seat0"}, "x11 session of alice seat0"},
		{&pb.DesktopStatus{Type: "wayland", User: "bob", Locked: true, Reason: "no"}, "wayland session of bob, locked: no"},
	} {
		got := ""
		for _, row := range Rows(&pb.GetStatusResponse{Desktop: c.desktop}) {
			if row[0] == "desktop" {
				got = row[1]
			}
		}
		if got != c.want {
			t.Errorf("%v: %q, want %q", c.desktop, got, c.want)
		}
	}
}
