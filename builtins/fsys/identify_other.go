//go:build !linux

package fsys

func (r *Root) identify(string) (Meta, error) { return Meta{}, unsupported("the identity of a path") }
