package main

import (
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/quantix-kvm/guest-agent/wire/client"
)

// meter shows how far a copy is, on a terminal; elsewhere it shows nothing.
type meter struct {
	bar   *progressbar.ProgressBar
	total int64
	done  int64
}

// redrawInterval is how often the bar is drawn.
const redrawInterval = 100 * time.Millisecond

func (a *app) meter(what string) *meter {
	if a.quiet || a.json || !isScreen(a.stderr) {
		return &meter{}
	}
	return &meter{bar: progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(a.stderr), progressbar.OptionSetDescription(printable(what)), progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(redrawInterval), progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth(),
		progressbar.OptionSetPredictTime(true))}
}

// progress returns the callback of a copy; nil where no bar is shown.
func (m *meter) progress() client.Progress {
	if m.bar == nil {
		return nil
	}
	return func(done, total int64) {
		if total != m.total {
			m.total = total
			m.bar.ChangeMax64(total)
		}
		if done < m.done { // the copy was restarted
			m.bar.Reset()
		}
		m.done = done
		m.bar.Set64(done)
	}
}

// clear erases the bar.
func (m *meter) clear() {
	if m.bar != nil {
		m.bar.Clear()
	}
}
