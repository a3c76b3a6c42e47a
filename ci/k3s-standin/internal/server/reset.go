package server

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/sirupsen/logrus"

	"orch.dev/k3s-standin/internal/bootstrap"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/controlplane"
	"orch.dev/k3s-standin/internal/datastore"
	"orch.dev/k3s-standin/internal/process"
	"orch.dev/k3s-standin/internal/token"
)

// reset makes this server the only one of its cluster, as it is or as it was in
// a snapshot, and ends.
func reset(ctx context.Context, cfg *config.Config) error {
	if err := datastore.MayReset(cfg); err != nil {
		return err
	}
	if cfg.RestorePath != "" {
		if err := restoreBootstrap(cfg); err != nil {
			return err
		}
	}
	if err := prepare(cfg); err != nil {
		return err
	}
	store, err := datastore.Reset(cfg)
	if err != nil {
		return err
	}
	var group process.Group
	err = controlplane.StartEtcd(ctx, &group, store)
	group.Stop()
	if err != nil {
		return err
	}
	if err := datastore.FinishReset(cfg.DataDir); err != nil {
		return err
	}
	logrus.Info("Managed etcd cluster membership has been reset, restart without --cluster-reset flag now. Backup and delete ${datadir}/server/db on each peer etcd server and rejoin the nodes")
	return nil
}

// restoreBootstrap makes this server's CAs and keys those of the cluster in the
// snapshot, which only the token of then opens.
func restoreBootstrap(cfg *config.Config) error {
	tokenFile := cfg.DataDir.Server("token")
	text := cfg.Token
	if text == "" {
		content, err := os.ReadFile(tokenFile)
		if os.IsNotExist(err) {
			return fmt.Errorf("%s does not exist, please pass --token to complete the restoration", tokenFile)
		}
		if err != nil {
			return err
		}
		text = string(content)
	}
	tok, err := token.Parse(text)
	if err != nil {
		return err
	}
	sealed, err := datastore.SealedBootstrap(cfg.RestorePath, bootstrap.Key(tok.Bearer))
	if err != nil {
		return err
	}
	if sealed == nil {
		return errors.New("the snapshot holds no bootstrap data: it is not of a cluster of this stand-in")
	}
	bundle, err := bootstrap.Open(sealed, tok.Bearer)
	if err != nil {
		return err
	}
	if err := bundle.Write(cfg.DataDir); err != nil {
		return err
	}
	cfg.Token = text
	return dropOtherToken(tokenFile, tok)
}

// dropOtherToken makes room for the token of the snapshot where this server had
// another one; one that is the same is not out of its file for a moment.
func dropOtherToken(file string, wanted token.Token) error {
	content, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if known, err := token.Parse(string(content)); err == nil && known.Bearer == wanted.Bearer {
		return nil
	}
	return os.Remove(file)
}
