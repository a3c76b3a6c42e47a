package process

import (
	"bytes"
	"os"
)

// prefixWriter copies whole lines to stderr, each with the component's name, so
// that one journal can be read for many children.
type prefixWriter struct {
	prefix  string
	pending []byte
}

func (w *prefixWriter) Write(data []byte) (int, error) {
	w.pending = append(w.pending, data...)
	for {
		end := bytes.IndexByte(w.pending, '\n')
		if end < 0 {
			return len(data), nil
		}
		line := append([]byte(w.prefix), w.pending[:end+1]...)
		if _, err := os.Stderr.Write(line); err != nil {
			return 0, err
		}
		w.pending = w.pending[end+1:]
	}
}
