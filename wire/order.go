package wire

// orderPlace is the place of a request among those that are served one after the other.
type orderPlace struct {
	name   string
	before <-chan struct{} // closed when the one before it is served; nil: there is none
	served chan struct{}   // closed when it is served itself; nil: none waits for that. Guarded by the connection's lock
}

// enterOrder puts a request after the last one of its order.
func (c *Conn) enterOrder(s *servedCall) {
	if c.config.Order == nil {
		return
	}
	if s.order.name = c.config.Order(s.request); s.order.name == "" {
		return
	}
	c.orderMu.Lock()
	defer c.orderMu.Unlock()
	if last := c.order[s.order.name]; last != nil {
		last.served = make(chan struct{})
		s.order.before = last.served
	}
	c.order[s.order.name] = &s.order
}

// leaveOrder lets the next request of an order be served.
func (c *Conn) leaveOrder(s *servedCall) {
	if s.order.name == "" {
		return
	}
	c.orderMu.Lock()
	defer c.orderMu.Unlock()
	if s.order.served != nil {
		close(s.order.served)
	}
	if c.order[s.order.name] == &s.order {
		delete(c.order, s.order.name)
	}
}
