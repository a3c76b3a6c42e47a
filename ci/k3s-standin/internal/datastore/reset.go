package datastore

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"orch.dev/k3s-standin/internal/bootstrap"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
)

const (
	keptBackups = 5
	// revisionBump is what etcd advises for Kubernetes: whoever watched the
	// cluster before must see that it went back, and list anew.
	revisionBump = 1_000_000_000
)

// MayReset tells why a reset must not be done now.
func MayReset(cfg *config.Config) error {
	data := cfg.DataDir
	if conn, err := net.DialTimeout("tcp", ClientAddress, dialTimeout); err == nil {
		_ = conn.Close()
		return fmt.Errorf("etcd is running at %s: stop k3s on every server before a reset", ClientAddress)
	}
	if cfg.RestorePath != "" {
		info, err := os.Stat(cfg.RestorePath)
		switch {
		case os.IsNotExist(err):
			return fmt.Errorf("etcd: snapshot path does not exist: %s", cfg.RestorePath)
		case err != nil:
			return err
		case info.IsDir():
			return fmt.Errorf("etcd: snapshot path must be a file, not a directory: %s", cfg.RestorePath)
		}
		return nil
	}
	if _, err := os.Stat(data.ResetFlag()); err == nil {
		return fmt.Errorf("Managed etcd cluster membership was previously reset, please remove the cluster-reset flag and start k3s normally. If you need to perform another cluster reset, you must first manually delete the %s file", data.ResetFlag())
	} else if !os.IsNotExist(err) {
		return err
	}
	if !data.EtcdInitialized() {
		return fmt.Errorf("there is no etcd data in %s to reset: give the snapshot to restore with cluster-reset-restore-path", data.Etcd())
	}
	return nil
}

// Reset prepares a start of etcd as the only member of its cluster, with the
// data that is there or with that of a snapshot.
func Reset(cfg *config.Config) (*Store, error) {
	s := newStore(cfg)
	if cfg.RestorePath == "" {
		s.start = []string{"--force-new-cluster"}
		return s, s.settleName(true)
	}
	path, err := filepath.Abs(cfg.RestorePath)
	if err != nil {
		return nil, err
	}
	if s.name, err = newName(s.nodeName); err != nil {
		return nil, err
	}
	// Beside the data that is there, which makes room only for one that is whole.
	restored := s.data.Etcd() + "-restored"
	if err := os.RemoveAll(restored); err != nil {
		return nil, err
	}
	err = snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: path, Name: s.name, OutputDataDir: restored,
		PeerURLs: []string{s.peerURL()}, InitialCluster: s.name + "=" + s.peerURL(), InitialClusterToken: "etcd-cluster",
		RevisionBump: revisionBump, MarkCompacted: true,
	})
	if err != nil {
		return nil, fmt.Errorf("failed to restore %s: %w", path, err)
	}
	if err := layout.WriteFile(filepath.Join(restored, filepath.Base(s.data.EtcdName())), []byte(s.name), 0o600); err != nil {
		return nil, err
	}
	if _, err := os.Stat(s.data.Etcd()); err == nil {
		if err := backUp(s.data); err != nil {
			return nil, err
		}
	}
	return s, os.Rename(restored, s.data.Etcd())
}

// FinishReset leaves K3s's mark of a reset; a normal start removes it.
func FinishReset(data layout.Data) error {
	if err := os.Remove(data.EtcdMembers()); err != nil && !os.IsNotExist(err) {
		return err
	}
	return layout.WriteFile(data.ResetFlag(), nil, 0o600)
}

// ForgetReset is for a normal start.
func ForgetReset(data layout.Data) error {
	if err := os.Remove(data.ResetFlag()); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// backUp moves etcd's data aside, as K3s does, and keeps the last ones.
func backUp(data layout.Data) error {
	prefix := data.Etcd() + "-old-"
	if err := os.Rename(data.Etcd(), prefix+strconv.FormatInt(time.Now().Unix(), 10)); err != nil {
		return err
	}
	backups, err := filepath.Glob(prefix + "*")
	if err != nil {
		return err
	}
	sort.Slice(backups, func(i, j int) bool { return age(backups[i]) > age(backups[j]) })
	for len(backups) > keptBackups {
		if err := os.RemoveAll(backups[len(backups)-1]); err != nil {
			return err
		}
		backups = backups[:len(backups)-1]
	}
	return nil
}

func age(backup string) int64 {
	seconds, err := strconv.ParseInt(backup[strings.LastIndex(backup, "-")+1:], 10, 64)
	if err != nil {
		return 0
	}
	return seconds
}

// SealedBootstrap returns the bootstrap data in a snapshot: that under the key
// given or, if there is only another one's, that. It is nil in a snapshot of a
// cluster that kept none.
func SealedBootstrap(path, key string) ([]byte, error) {
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("%s is not a snapshot of etcd: %w", path, err)
	}
	defer db.Close()
	latest := map[string][]byte{}
	err = db.View(func(tx *bolt.Tx) error {
		bucket := tx.Bucket([]byte("key"))
		if bucket == nil {
			return errors.New("it holds no keys")
		}
		// In the order of revisions: the last value of a key counts.
		return bucket.ForEach(func(_, value []byte) error {
			var kv mvccpb.KeyValue
			if err := kv.Unmarshal(value); err != nil {
				return err
			}
			if strings.HasPrefix(string(kv.Key), bootstrap.KeyPrefix) {
				latest[string(kv.Key)] = kv.Value
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("%s is not a snapshot of etcd: %w", path, err)
	}
	if sealed, ok := latest[key]; ok {
		return sealed, nil
	}
	for _, sealed := range latest {
		return sealed, nil
	}
	return nil, nil
}
