package port

// TryWrite writes what the session's channel takes without waiting, and returns how many bytes of p that were: 0 where it would
// have to wait, or where the channel has no such call. It must not be called concurrently with Write.
func (o *trackedSession) TryWrite(p []byte) (int, error) {
	if channel, ok := o.ReadWriteCloser.(interface{ TryWrite(p []byte) (int, error) }); ok {
		return channel.TryWrite(p)
	}
	return 0, nil
}
