// Command airgap writes the stand-in's container images, each a single static
// program and nothing else, into one archive that `ctr images import` reads:
// the layout of `docker save`, compressed with zstd. Equal programs give an
// equal archive.
//
//	airgap OUTPUT NAME:TAG=PROGRAM...
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// user is the numeric owner of nothing: images run unprivileged.
const user = "65532:65532"

type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: airgap OUTPUT NAME:TAG=PROGRAM...")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "airgap:", err)
		os.Exit(1)
	}
}

func write(output string, images []string) error {
	file, err := os.Create(output)
	if err != nil {
		return err
	}
	defer file.Close()
	compressed, err := zstd.NewWriter(file, zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return err
	}
	if err := writeArchive(compressed, images); err != nil {
		return err
	}
	if err := compressed.Close(); err != nil {
		return err
	}
	return file.Close()
}

func writeArchive(out io.Writer, images []string) error {
	archive := tar.NewWriter(out)
	var manifests []manifest
	for _, image := range images {
		name, program, found := strings.Cut(image, "=")
		if !found {
			return fmt.Errorf("%q is not NAME:TAG=PROGRAM", image)
		}
		entry, err := writeImage(archive, name, program)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		manifests = append(manifests, entry)
	}
	index, err := json.Marshal(manifests)
	if err != nil {
		return err
	}
	if err := add(archive, "manifest.json", 0o644, index); err != nil {
		return err
	}
	return archive.Close()
}

func writeImage(archive *tar.Writer, name, program string) (manifest, error) {
	content, err := os.ReadFile(program)
	if err != nil {
		return manifest{}, err
	}
	entrypoint := path.Base(program)
	var layer bytes.Buffer
	files := tar.NewWriter(&layer)
	if err := add(files, entrypoint, 0o755, content); err != nil {
		return manifest{}, err
	}
	if err := files.Close(); err != nil {
		return manifest{}, err
	}
	layerDigest := digest(layer.Bytes())
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64",
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/" + entrypoint}, "User": user, "WorkingDir": "/"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + layerDigest}},
		"history":      []map[string]string{{"created_by": "orch k3s stand-in: " + entrypoint}},
	})
	if err != nil {
		return manifest{}, err
	}
	configName, layerName := digest(config)+".json", layerDigest+"/layer.tar"
	if err := add(archive, configName, 0o644, config); err != nil {
		return manifest{}, err
	}
	return manifest{configName, []string{name}, []string{layerName}}, add(archive, layerName, 0o644, layer.Bytes())
}

func add(archive *tar.Writer, name string, mode int64, content []byte) error {
	header := &tar.Header{Name: name, Mode: mode, Size: int64(len(content)), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
