package node

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/sirupsen/logrus"

	"orch.dev/k3s-standin/internal/layout"
)

// importImages loads every archive in agent/images into containerd. An archive
// that cannot be read is logged and passed over, as K3s does.
func importImages(ctx context.Context, data layout.Data) error {
	dir := data.Agent("images")
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		open := decompressor(entry.Name())
		if open == nil || entry.IsDir() {
			continue
		}
		started := time.Now()
		path := filepath.Join(dir, entry.Name())
		if err := importArchive(ctx, path, open); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			logrus.Errorf("Unable to import images from %s: %v", path, err)
			continue
		}
		logrus.Infof("Imported images from %s in %s", path, time.Since(started).Round(time.Millisecond))
	}
	return nil
}

type openReader func(io.Reader) (io.ReadCloser, error)

// decompressor picks by name; nil is for files that are no archives.
func decompressor(name string) openReader {
	switch {
	case strings.HasSuffix(name, ".tar"):
		return func(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(r), nil }
	case strings.HasSuffix(name, ".tar.zst"), strings.HasSuffix(name, ".tzst"):
		return func(r io.Reader) (io.ReadCloser, error) {
			decoder, err := zstd.NewReader(r)
			if err != nil {
				return nil, err
			}
			return decoder.IOReadCloser(), nil
		}
	case strings.HasSuffix(name, ".tar.gz"), strings.HasSuffix(name, ".tgz"):
		return func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }
	}
	return nil
}

func importArchive(ctx context.Context, path string, open openReader) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	content, err := open(file)
	if err != nil {
		return err
	}
	defer content.Close()
	cmd := ctr(ctx, "images", "import", "--all-platforms", "-")
	cmd.Stdin = content
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(output)))
	}
	return nil
}
