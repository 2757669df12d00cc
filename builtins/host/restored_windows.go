package host

import "context"

// restored has nobody to tell on Windows.
func (r *Room) restored(context.Context, []string) error { return nil }
