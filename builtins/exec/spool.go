package exec

import (
	"os"
	"path/filepath"
	"strconv"
)

// segmentBytes is the size of a segment of a job's output. A segment is named after the offset where it begins, so that
// a gap between two shows. The last segments are kept that have at least this size together, and one more.
const segmentBytes = 2 << 20

// maxSegments bounds the segments of a stream, which are small where the disk is full again and again.
const maxSegments = 64

// spool writes one stream of a job.
type spool struct {
	dir, name string
	total     uint64 // bytes written so far, lost ones included
	file      *os.File
	segments  []segment // what is stored, the oldest first; the last one is file, where that is open
}

// Write never fails: if the disk is full, output is lost and the command runs on. What is stored stays.
func (s *spool) Write(p []byte) (int, error) {
	all := len(p)
	for len(p) > 0 {
		n := s.store(p)
		if n == 0 { // the rest of p is lost; the next one may find room again
			n = len(p)
			s.close() // so that it begins a segment at its own offset, which shows the gap
		}
		s.total += uint64(n)
		p = p[n:]
	}
	return all, nil
}

// store writes the beginning of p, as far as the segment and the disk have room for it.
func (s *spool) store(p []byte) int {
	if s.file != nil && s.last().size() >= segmentBytes {
		s.close()
	}
	if s.file == nil && !s.open() {
		return 0
	}
	last := s.last()
	n, _ := s.file.Write(p[:min(uint64(len(p)), segmentBytes-last.size())])
	last.end += uint64(n)
	if last.size() == 0 { // it was begun for nothing
		s.close()
		os.Remove(last.path)
		s.segments = s.segments[:len(s.segments)-1]
	}
	s.dropOld()
	return n
}

// size is how many bytes a segment has.
func (s *segment) size() uint64 { return s.end - s.begin }

func (s *spool) last() *segment { return &s.segments[len(s.segments)-1] }

// open begins a segment at the current offset.
func (s *spool) open() bool {
	path := filepath.Join(s.dir, s.name+"."+strconv.FormatUint(s.total, 10))
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return false
	}
	s.file = file
	s.segments = append(s.segments, segment{path: path, begin: s.total, end: s.total})
	return true
}

// dropOld removes the oldest segments, as long as enough is stored after them.
func (s *spool) dropOld() {
	stored := uint64(0)
	for i := range s.segments {
		stored += s.segments[i].size()
	}
	for len(s.segments) > 2 {
		stored -= s.segments[0].size()
		if newest := s.last().size(); stored-newest < segmentBytes && len(s.segments) <= maxSegments {
			return
		}
		os.Remove(s.segments[0].path)
		s.segments = s.segments[1:]
	}
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}
