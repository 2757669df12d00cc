package journal

import "github.com/quantix-kvm/guest-agent/wire/fault"

// setUnusable refuses all transactions until Dir can be used.
func (j *Journal) setUnusable(err error) {
	j.store.reset(true)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.lock != nil {
		_, _ = j.state.Close(), j.lock.Close()
		j.lock = nil
	}
	j.unusable = fault.Refuse("the state directory cannot be used: %v", fault.On(j.config.Dir, err))
	j.broken = j.unusable
}

// Unusable returns why the journal's directory cannot be used; nil if it can. See Config.Tolerant.
func (j *Journal) Unusable() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.unusable
}

// reopen tries to open a directory again that could not be used. The caller is the writer.
func (j *Journal) reopen() error {
	if j.Unusable() == nil {
		return nil
	}
	if err := j.open(); err != nil {
		j.setUnusable(err)
		return err
	}
	j.store.reset(false)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.unusable = nil
	return nil
}

// becomeReady calls Config.Ready, unless that was done. The caller is the writer.
func (j *Journal) becomeReady() error {
	if j.ready || j.config.Ready == nil {
		return nil
	}
	err := j.config.Ready()
	j.ready = err == nil
	return err
}
