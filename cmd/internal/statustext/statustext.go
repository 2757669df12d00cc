// Package statustext formats an agent's status for people, the same in the guest and on the host.
//
// Not here: the request for it, columns, and colours.
package statustext

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// State returns a state as a word, such as serving.
func State(s pb.AgentState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "AGENT_STATE_"))
}

// Line returns the status in one line, for a service manager.
func Line(s *pb.GetStatusResponse) string {
	if s.State != pb.AgentState_AGENT_STATE_SERVING {
		line := State(s.State)
		if s.Reason != "" {
			line += ": " + s.Reason
		}
		return strings.ReplaceAll(line, "\n", "; ")
	}
	var ports []string
	for _, p := range s.Ports {
		ports = append(ports, fmt.Sprintf("%s (%s)", p.Name, countHosts(len(p.Sessions))))
	}
	return "serving " + strings.Join(ports, ", ")
}

func countHosts(n int) string {
	switch n {
	case 0:
		return "no host"
	case 1:
		return "a host"
	}
	return fmt.Sprintf("%d hosts", n)
}

// Rows returns the status in two columns. Ages are by the guest's clock.
func Rows(s *pb.GetStatusResponse) [][]string {
	state := State(s.State)
	if s.Reason != "" {
		state += ": " + s.Reason
	}
	rows := [][]string{
		{"state", state},
		{"agent", strings.TrimSpace(s.Version + " " + s.Commit)},
		{"process", fmt.Sprintf("%d, up %v, %.1f MiB, %.1f s of processor", s.Pid, time.Duration(s.UptimeSeconds)*time.Second, float64(s.ResidentBytes)/(1<<20), float64(s.CpuMs)/1000)},
		{"last heard", age(s.Now, s.LastHeard)},
		{"requests", fmt.Sprint(s.InFlight, " under way")},
	}
	rows = append(rows, shutdownRows(s.PendingShutdown)...)
	rows = append(rows, firstBootRows(s.FirstBoot)...)
	rows = append(rows, updateRows(s)...)
	for _, f := range s.Frozen {
		rows = append(rows, []string{"frozen", fmt.Sprintf("%s, since %s, until %s", strings.Join(f.MountPoints, ", "), age(s.Now, f.Since), f.Until.AsTime().UTC().Format(time.TimeOnly))})
	}
	rows = append(rows, desktopRows(s.Desktop)...)
	rows = append(rows, portRows(s)...)
	rows = append(rows, journalRows(s.Journal)...)
	for _, layer := range s.Sandbox {
		word := "yes"
		if layer.Missing != "" {
			word = "no: " + layer.Missing
		}
		rows = append(rows, []string{"sandbox", layer.Name + ": " + word})
	}
	rows = append(rows, configRows(s)...)
	return append(rows, lineRows("log", s.Errors)...)
}

// firstBootRows are for scripts that have not all run.
func firstBootRows(f *pb.FirstBoot) [][]string {
	switch f.GetState() {
	case pb.FirstBootState_FIRST_BOOT_STATE_RUNNING:
		if f.Error != "" { // what it waits for
			return [][]string{{"first boot", f.Script + " " + f.Error}}
		}
		return [][]string{{"first boot", strings.TrimSpace("runs " + f.Script)}}
	case pb.FirstBootState_FIRST_BOOT_STATE_FAILED:
		return [][]string{{"first boot", strings.TrimPrefix("failed: "+f.Script+": "+f.Error, "failed: : ")}}
	}
	return nil
}

// updateRows are for an update that is under way, and for the last one.
func updateRows(s *pb.GetStatusResponse) (rows [][]string) {
	u := s.Update
	switch u.GetState() {
	case "applying":
		left := (time.Duration(u.RemainingMs) * time.Millisecond).Round(time.Second)
		words := fmt.Sprintf("to %s: a host is awaited for %v; else %s comes back", u.Version, left, u.FormerVersion)
		if u.Version == "" {
			words = "the agent is about to restart"
		}
		rows = append(rows, []string{"update", words})
	case "downloading", "verifying":
		rows = append(rows, []string{"update", fmt.Sprintf("%s %s, %d %%", u.State, u.Version, u.ProgressPercent)})
	case "rolling_back":
		rows = append(rows, []string{"update", u.FormerVersion + " is about to come back"})
	}
	if last := u.GetLast(); last != nil {
		words := fmt.Sprintf("%s installed in place of %s, %s", last.Version, last.FormerVersion, age(s.Now, last.At))
		if !last.Confirmed {
			words = fmt.Sprintf("%s was taken back, %s: %s", last.Version, age(s.Now, last.At), last.Error)
		}
		rows = append(rows, []string{"last update", words})
	}
	return rows
}

// desktopRows describes the desktop in front; none where none was looked for.
func desktopRows(d *pb.DesktopStatus) [][]string {
	if d.GetType() == "" {
		return nil
	}
	words := strings.TrimSpace(d.Type + " session of " + d.User + " " + d.Seat)
	if d.Locked {
		words += ", locked"
	}
	if d.Reason != "" {
		words += ": " + d.Reason
	}
	return [][]string{{"desktop", words}}
}

func shutdownRows(p *pb.PendingShutdown) [][]string {
	switch {
	case p == nil:
		return nil
	case p.Error != "":
		return [][]string{{"shutdown", p.Type + " failed: " + p.Error}}
	}
	words := p.Type + " under way"
	if p.RemainingMs > 0 {
		words = fmt.Sprintf("%s in %v", p.Type, (time.Duration(p.RemainingMs) * time.Millisecond).Round(time.Second))
	}
	if p.WaitingFor != "" {
		words += ", waiting for " + p.WaitingFor
	}
	return [][]string{{"shutdown", words}}
}

func portRows(s *pb.GetStatusResponse) (rows [][]string) {
	for _, p := range s.Ports {
		rows = append(rows, []string{"port", fmt.Sprintf("%s: %s, %d so far", p.Name, countHosts(len(p.Sessions)), p.TotalSessions)})
		for _, host := range p.Sessions {
			rows = append(rows, []string{"", fmt.Sprintf("a host since %s, last heard %s, %s", age(s.Now, host.Since), age(s.Now, host.LastHeard), host.Framing)})
		}
	}
	return rows
}

func journalRows(j *pb.JournalStatus) [][]string {
	words := "ready"
	if j.GetError() != "" {
		words = "no transaction can begin: " + j.GetError()
	}
	rows := [][]string{{"journal", words}}
	if open := j.GetOpen(); open != nil {
		words := fmt.Sprintf("%s: %s, %s", open.TransactionId, strings.ReplaceAll(open.Phase, "_", " "), open.Script.GetName())
		if open.ConfirmUntil != nil {
			left := time.Duration(open.ConfirmRemainingMs) * time.Millisecond
			words += fmt.Sprintf(", undone in %v unless it is confirmed", left.Round(time.Second))
		}
		rows = append(rows, []string{"transaction", words})
	}
	for _, dir := range j.GetKept() {
		rows = append(rows, []string{"not undone", dir + " has what is left; look at it, then remove it (ctl tx clean)"})
	}
	return append(rows, lineRows("recovered", j.GetRecovered())...)
}

func configRows(s *pb.GetStatusResponse) [][]string {
	c := s.Config
	words := "read " + age(s.Now, c.GetLoaded())
	if c.GetAbsent() {
		words = "not there " + age(s.Now, c.GetLoaded()) + ", so all is as by default"
	}
	rows := [][]string{{"configuration", c.GetPath() + ", " + words}}
	if c.GetError() != "" {
		rows = append(rows, []string{"", "faults: " + c.Error})
	}
	for _, w := range c.GetWarnings() {
		rows = append(rows, []string{"", "warning: " + w})
	}
	if len(c.GetNeedsRestart()) > 0 {
		rows = append(rows, []string{"", "waits for a restart: " + strings.Join(c.NeedsRestart, ", ")})
	}
	return rows
}

func lineRows(name string, list []*pb.StatusLine) (rows [][]string) {
	for _, line := range list {
		rows = append(rows, []string{name, fmt.Sprintf("%s %s: %s", line.At.AsTime().UTC().Format("2006-01-02 15:04:05Z"), line.Level, line.Message)})
	}
	return rows
}

// age returns how long ago something was.
func age(now, then *timestamppb.Timestamp) string {
	if then == nil {
		return "never"
	}
	return now.AsTime().Sub(then.AsTime()).Round(time.Second).String() + " ago"
}
