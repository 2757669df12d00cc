package exec

import (
	"os"
	"path/filepath"
	"strconv"
)

// The output of a job lies in segments that are named after the offset where they begin. The last two are kept.
const segmentBytes = 2 << 20

// spool writes one stream of a job.
type spool struct {
	dir, name string
	total     uint64 // bytes that came
	file      *os.File
	in        int // bytes in file
	segments  []string
}

// Write never fails: where the disk takes no more, output is missing and the command runs on.
func (s *spool) Write(p []byte) (int, error) {
	all := len(p)
	for len(p) > 0 {
		if s.file == nil || s.in >= segmentBytes {
			s.next()
		}
		n := min(len(p), segmentBytes-min(s.in, segmentBytes-1))
		if s.file != nil {
			if _, err := s.file.Write(p[:n]); err != nil {
				s.close() // what follows begins at its own offset, so that the gap is seen
			}
		}
		s.in += n
		s.total += uint64(n)
		p = p[n:]
	}
	return all, nil
}

// next begins a segment.
func (s *spool) next() {
	s.close()
	path := filepath.Join(s.dir, s.name+"."+strconv.FormatUint(s.total, 10))
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	s.file, s.in = file, 0
	s.segments = append(s.segments, path)
	if len(s.segments) > 2 {
		os.Remove(s.segments[0])
		s.segments = s.segments[1:]
	}
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}
