package journal

import (
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// withoutSecrets returns the error of an operation with a text that may be told and recorded: without the secrets of the
// request, or, where nobody knows these any more, without what the operation said.
func (t *Tx) withoutSecrets(err error) error {
	switch {
	case err == nil || !t.begin.GetSecrets():
		return err
	case t.hide != nil:
		return fault.Wrapf(err, "%s", t.hide(err.Error()))
	}
	return fault.Wrapf(err, "it failed (%s); what it said is not told, since the request had secrets", fault.Code(err))
}
