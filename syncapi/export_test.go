package syncapi

// Polls counts the syncs under way.
func (s *Server) Polls() (n int) {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	for _, l := range s.watch.users {
		n += l.polls
	}
	return n
}
