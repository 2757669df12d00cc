package port

// TryWrite writes what the session's channel takes without waiting, and gives how many bytes of p that were: 0 where it
// would have to wait, or cannot tell. It must not be called beside Write.
func (o *once) TryWrite(p []byte) (int, error) {
	if channel, ok := o.ReadWriteCloser.(interface{ TryWrite(p []byte) (int, error) }); ok {
		return channel.TryWrite(p)
	}
	return 0, nil
}
