package journal

import (
	"cmp"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// withoutSecrets returns the error of an operation with a text that may be sent and recorded: without the secrets of the
// request, or, where nobody knows these any more, without what the operation said.
func (t *Tx) withoutSecrets(err error) error {
	switch {
	case err == nil || !t.begin.GetSecrets():
		return err
	case t.hide != nil:
		return fault.Wrapf(err, "%s", t.hide(err.Error()))
	}
	return fault.Wrapf(err, "it failed (%s); its text is withheld, since the request had secrets", fault.Code(err))
}

// tell returns a text of the journal's own, such as a path, without the secrets of the request. Where nobody knows these any
// more it is without the names that had some.
func (t *Tx) tell(text string) string {
	switch {
	case !t.begin.GetSecrets():
		return text
	case t.hide != nil:
		return t.hide(text)
	}
	return t.names.hide(text)
}

// tellError is tell for the text of an error.
func (t *Tx) tellError(err error) error {
	if err == nil {
		return nil
	}
	if said := t.tell(err.Error()); said != err.Error() {
		return fault.Wrapf(err, "%s", said)
	}
	return err
}

// addTold notes in the record of a step how an agent that does not know the secrets reports paths with secrets.
func (t *Tx) addTold(record *pb.JournalRecord) {
	if t.hide == nil {
		return
	}
	told := func(path string) string {
		if told := t.hide(path); told != path {
			return told
		}
		return ""
	}
	for _, o := range record.GetKeep().GetObjects() {
		o.Told = told(o.Path)
	}
	if take := record.GetTake(); take != nil {
		take.Told = told(take.Path)
	}
}

// maxToldNames bounds the names with secrets that are held. Where there are more, nothing is reported.
const maxToldNames = 4096

// untold stands for a text that is withheld.
const untold = "[not told]"

// toldNames are names and paths with secrets, as records report them.
type toldNames struct {
	told     map[string]string // by the name
	replacer *strings.Replacer // of all of them, once they are known
}

// add notes the names of a record.
func (n *toldNames) add(record *pb.JournalRecord) {
	for _, o := range record.GetKeep().GetObjects() {
		n.addPath(o.Path, o.Told)
	}
	n.addPath(record.GetTake().GetPath(), record.GetTake().GetTold())
}

// addPath notes the elements of a path that differ from how they are reported: what is reported otherwise may be in another
// directory.
func (n *toldNames) addPath(path, told string) {
	if told == "" {
		return
	}
	if n.told == nil {
		n.told = map[string]string{}
	}
	was, is := fsys.Elements(path), fsys.Elements(told)
	if len(was) != len(is) || !fsys.IsAbs(told) {
		was, is = []string{path}, []string{told}
	}
	for i, name := range was {
		if name != is[i] && len(n.told) <= maxToldNames {
			n.told[name] = is[i]
		}
	}
}

// ready is called once all are noted.
func (n *toldNames) ready() {
	if len(n.told) == 0 || len(n.told) > maxToldNames {
		return
	}
	var pairs []string
	names := sortedKeys(n.told)
	longest := func(a, b string) int { return cmp.Compare(len(b), len(a)) }
	slices.SortStableFunc(names, longest) // since it may begin with another one
	for _, name := range names {
		pairs = append(pairs, name, n.told[name])
	}
	n.replacer = strings.NewReplacer(pairs...)
}

// hide returns a text without the names.
func (n *toldNames) hide(text string) string {
	switch {
	case len(n.told) > maxToldNames:
		return untold
	case n.replacer == nil:
		return text
	}
	return n.replacer.Replace(text)
}
