package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestArchiveIsCompleteAndRepeatable(t *testing.T) {
	program := filepath.Join(t.TempDir(), "pause")
	if err := os.WriteFile(program, []byte("program"), 0o700); err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	for _, out := range []*bytes.Buffer{&first, &second} {
		if err := writeArchive(out, []string{"example/pause:1=" + program}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two archives of one program differ")
	}
	files := map[string][]byte{}
	for reader := tar.NewReader(&first); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(reader); err != nil {
			t.Fatal(err)
		}
	}
	var manifests []manifest
	if err := json.Unmarshal(files["manifest.json"], &manifests); err != nil {
		t.Fatal(err)
	}
	if len(manifests) != 1 || manifests[0].RepoTags[0] != "example/pause:1" {
		t.Fatalf("got %+v", manifests)
	}
	var config struct {
		Config struct{ Entrypoint []string }
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(files[manifests[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	layer := files[manifests[0].Layers[0]]
	if config.Config.Entrypoint[0] != "/pause" || config.RootFS.DiffIDs[0] != "sha256:"+digest(layer) {
		t.Errorf("got %+v", config)
	}
}

func TestAMissingProgramIsAnError(t *testing.T) {
	if err := writeArchive(io.Discard, []string{"example/pause:1=/nonexistent"}); err == nil {
		t.Error("no error")
	}
	if err := writeArchive(io.Discard, []string{"example/pause:1"}); err == nil {
		t.Error("no error")
	}
}
