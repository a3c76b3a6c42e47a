package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/datastore"
)

// partial marks a file that is still being written.
const partial = ".part"

type file struct {
	name, path string
	size       int64
	created    time.Time
}

func (f file) location() string { return "file://" + f.path }

// save writes what this server's own member holds and returns the name.
func save(ctx context.Context, options *config.Snapshot) (string, error) {
	name := fmt.Sprintf("%s-%s-%d", options.Name, options.NodeName, time.Now().Unix())
	if filepath.Base(name) != name {
		return "", fmt.Errorf("the name %q is not one of a file", options.Name)
	}
	if err := os.MkdirAll(options.Dir, 0o700); err != nil {
		return "", err
	}
	client, err := datastore.Client(options.DataDir)
	if err != nil {
		return "", err
	}
	defer client.Close()
	if _, err := client.Get(ctx, "health"); err != nil {
		return "", fmt.Errorf("etcd at %s does not answer, is k3s running? %w", datastore.ClientAddress, err)
	}
	content, err := client.Snapshot(ctx)
	if err != nil {
		return "", err
	}
	defer content.Close()
	return name, write(filepath.Join(options.Dir, name), content)
}

func write(path string, content io.Reader) error {
	out, err := os.OpenFile(path+partial, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	size, err := io.Copy(out, content)
	// The database is whole pages, and its digest follows it.
	if err == nil && size%512 != sha256.Size {
		err = fmt.Errorf("the stream ended early, after %d bytes", size)
	}
	if err == nil {
		err = out.Sync()
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(out.Name(), path)
}

// list returns the snapshots in a folder, the oldest first.
func list(dir string) ([]file, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	var files []file
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() || strings.HasSuffix(entry.Name(), partial) {
			continue
		}
		files = append(files, file{entry.Name(), filepath.Join(dir, entry.Name()), info.Size(), info.ModTime().UTC()})
	}
	slices.SortStableFunc(files, func(a, b file) int { return a.created.Compare(b.created) })
	return files, nil
}

// superfluous are the oldest of the files with a prefix, all but the last ones.
func superfluous(files []file, prefix string, kept int) []file {
	matching := slices.DeleteFunc(slices.Clone(files), func(f file) bool { return !strings.HasPrefix(f.name, prefix) })
	return matching[:max(0, len(matching)-kept)]
}

// snapshotList is K3s's ETCDSnapshotFileList, as its command prints it.
type snapshotList struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        struct{}   `json:"metadata"`
	Items           []snapshot `json:"items"`
}

type snapshot struct {
	Metadata struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec struct {
		SnapshotName string `json:"snapshotName"`
		NodeName     string `json:"nodeName"`
		Location     string `json:"location"`
	} `json:"spec"`
	Status struct {
		Size         *resource.Quantity `json:"size"`
		CreationTime metav1.Time        `json:"creationTime"`
		ReadyToUse   bool               `json:"readyToUse"`
	} `json:"status"`
}

func describe(files []file, node string) snapshotList {
	described := snapshotList{Items: []snapshot{}}
	described.APIVersion, described.Kind = "k3s.cattle.io/v1", "ETCDSnapshotFileList"
	for _, f := range files {
		digest := sha256.Sum256([]byte(node + f.location()))
		var s snapshot
		s.Metadata.Name = "local-" + strings.ToLower(f.name) + "-" + hex.EncodeToString(digest[:])[:6]
		s.Metadata.Labels = map[string]string{"etcd.k3s.cattle.io/snapshot-storage-node": node}
		s.Spec.SnapshotName, s.Spec.NodeName, s.Spec.Location = f.name, node, f.location()
		s.Status.Size = resource.NewQuantity(f.size, resource.DecimalSI)
		s.Status.CreationTime, s.Status.ReadyToUse = metav1.NewTime(f.created), true
		described.Items = append(described.Items, s)
	}
	return described
}
