package exec

import (
	"os"
	"path/filepath"
	"strconv"
)

// segmentBytes is the size of a segment of a job's output. A segment is named after the offset where it begins; the last two
// of a stream are kept.
const segmentBytes = 2 << 20

// spool writes one stream of a job.
type spool struct {
	dir, name   string
	total       uint64 // bytes written so far, lost ones included
	file        *os.File
	segmentSize int // bytes in file
	segments    []string
}

// Write never fails: if the disk is full, output is lost and the command runs on.
func (s *spool) Write(p []byte) (int, error) {
	all := len(p)
	for len(p) > 0 {
		if s.file == nil || s.segmentSize >= segmentBytes {
			s.nextSegment()
		}
		n := min(len(p), segmentBytes-min(s.segmentSize, segmentBytes-1))
		if s.file != nil {
			if _, err := s.file.Write(p[:n]); err != nil {
				s.close() // the next write begins a segment at its own offset, which shows the gap
			}
		}
		s.segmentSize += n
		s.total += uint64(n)
		p = p[n:]
	}
	return all, nil
}

// nextSegment begins a segment.
func (s *spool) nextSegment() {
	s.close()
	path := filepath.Join(s.dir, s.name+"."+strconv.FormatUint(s.total, 10))
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	s.file, s.segmentSize = file, 0
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
