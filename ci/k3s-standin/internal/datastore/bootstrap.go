package datastore

import (
	"context"
	"reflect"

	"orch.dev/k3s-standin/internal/bootstrap"
)

// SaveBootstrap keeps this server's bootstrap data in the datastore, sealed
// with the server's password.
func (s *Store) SaveBootstrap(ctx context.Context, password string) error {
	bundle, err := bootstrap.Collect(s.data)
	if err != nil {
		return err
	}
	client, err := Client(s.data)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	key := bootstrap.Key(password)
	answer, err := client.Get(ctx, key)
	if err != nil {
		return err
	}
	if len(answer.Kvs) > 0 {
		if saved, err := bootstrap.Open(answer.Kvs[0].Value, password); err == nil && reflect.DeepEqual(saved, bundle) {
			return nil
		}
	}
	sealed, err := bootstrap.Seal(bundle, password)
	if err != nil {
		return err
	}
	_, err = client.Put(ctx, key, string(sealed))
	return err
}
