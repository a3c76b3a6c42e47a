package datastore

import (
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"orch.dev/k3s-standin/internal/bootstrap"
)

func TestASnapshotYieldsItsNewestBootstrapData(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	key := bootstrap.Key("secret")
	err = db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucket([]byte("key"))
		if err != nil {
			return err
		}
		for revision, kv := range []mvccpb.KeyValue{
			{Key: []byte(key), Value: []byte("old")},
			{Key: []byte("/registry/pods/a"), Value: []byte("a pod")},
			{Key: []byte(key), Value: []byte("new")},
		} {
			value, err := kv.Marshal()
			if err != nil {
				return err
			}
			if err := bucket.Put([]byte{byte(revision)}, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, asked := range []string{key, bootstrap.Key("another")} {
		if sealed, err := SealedBootstrap(path, asked); err != nil || string(sealed) != "new" {
			t.Errorf("got %q, %v", sealed, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the snapshot was changed: %v, %v", info, err)
	}
}
