package registry

import (
	"strings"

	"golang.org/x/sys/windows/registry"

	"github.com/quantix-kvm/guest-agent/builtins"
)

// pretence is what a dry run pretends of the registry. A nil one pretends nothing.
type pretence struct {
	keys   map[string]bool              // whether there is a key, by its id
	cut    map[string]bool              // what is really below these is not seen
	values map[string]map[string]*value // by the id of the key and the name in lower case; nil: removed
}

// id is one spelling of a key, of all in which case may be written.
func (p path) id() string { return strings.ToLower(p.String()) }

// pretended is what the registry is to a call.
func pretended(call *builtins.Call) *pretence {
	if call.DryRun == nil {
		return nil
	}
	if call.DryRun.Pretended == nil {
		call.DryRun.Pretended = map[string]any{}
	}
	p, ok := call.DryRun.Pretended[kind].(*pretence)
	if !ok {
		p = &pretence{keys: map[string]bool{}, cut: map[string]bool{}, values: map[string]map[string]*value{}}
		call.DryRun.Pretended[kind] = p
	}
	return p
}

// real reports whether what really is at a key is seen.
func (s *pretence) real(p path) bool {
	for at, more := p, true; more; at, more = at.parent() {
		if s.cut[at.id()] {
			return false
		}
	}
	return true
}

func (s *pretence) exists(p path) (bool, error) {
	if s != nil {
		if there, known := s.keys[p.id()]; known {
			return there, nil
		}
		if !s.real(p) {
			return false, nil
		}
	}
	return p.exists()
}

func (s *pretence) lookUp(p path, name string) (*value, bool, error) {
	if s == nil {
		return p.lookUp(name)
	}
	there, err := s.exists(p)
	if err != nil || !there {
		return nil, false, err
	}
	if v, known := s.values[p.id()][strings.ToLower(name)]; known {
		return v, true, nil
	}
	if !s.real(p) {
		return nil, true, nil
	}
	v, _, err := p.lookUp(name)
	return v, true, err
}

// set pretends that a value is there; nil: that it is not.
func (s *pretence) set(p path, name string, v *value) {
	if v != nil {
		for at, more := p, true; more; at, more = at.parent() {
			if there, err := s.exists(at); err == nil && there {
				break
			}
			s.keys[at.id()] = true
		}
	}
	if s.values[p.id()] == nil {
		s.values[p.id()] = map[string]*value{}
	}
	s.values[p.id()][strings.ToLower(name)] = v
}

// removeKey pretends that a key is not there, nor anything below it.
func (s *pretence) removeKey(p path) {
	id := p.id()
	for other := range s.keys {
		if strings.HasPrefix(other, id+`\`) {
			delete(s.keys, other)
		}
	}
	for other := range s.values {
		if other == id || strings.HasPrefix(other, id+`\`) {
			delete(s.values, other)
		}
	}
	s.keys[id], s.cut[id] = false, true
}

// isEmpty reports whether a key has neither values nor keys below it.
func (s *pretence) isEmpty(p path) (bool, error) {
	id := p.id()
	for other, there := range s.keys {
		if there && strings.HasPrefix(other, id+`\`) {
			return false, nil
		}
	}
	for _, v := range s.values[id] {
		if v != nil {
			return false, nil
		}
	}
	if !s.real(p) {
		return true, nil
	}
	there, err := p.exists()
	if err != nil || !there {
		return true, err
	}
	key, err := p.open(registry.QUERY_VALUE | registry.ENUMERATE_SUB_KEYS)
	if err != nil {
		return false, err
	}
	defer key.Close()
	names, err := key.ReadValueNames(-1)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if v, known := s.values[id][strings.ToLower(name)]; !known || v != nil {
			return false, nil
		}
	}
	below, err := key.ReadSubKeyNames(-1)
	if err != nil {
		return false, err
	}
	for _, name := range below {
		if there, known := s.keys[p.child(name).id()]; !known || there {
			return false, nil
		}
	}
	return true, nil
}
