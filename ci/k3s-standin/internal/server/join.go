package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"orch.dev/k3s-standin/internal/bootstrap"
	"orch.dev/k3s-standin/internal/clientaccess"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/token"
)

const joinRetry = 3 * time.Second

// joinServer makes this server one of the cluster that the settings name: its
// CAs and keys become the cluster's own. It returns etcd's members. A server
// that has been one before needs nothing of it.
func joinServer(ctx context.Context, cfg *config.Config) ([]string, error) {
	if cfg.ServerURL == "" {
		return nil, nil
	}
	if cfg.DataDir.EtcdInitialized() {
		if !cfg.DataDir.ManagedEtcd() {
			return nil, fmt.Errorf("this server has a cluster of its own in %s: remove it to join %s, or `server` from the settings", cfg.DataDir.Etcd(), cfg.ServerURL)
		}
		return nil, nil
	}
	server, err := clientaccess.Base(cfg.ServerURL)
	if err != nil {
		return nil, err
	}
	if cfg.Token == "" {
		return nil, errors.New("token is required to join a server: set token-file, token or K3S_TOKEN_FILE")
	}
	tok, err := token.Parse(cfg.Token)
	if err != nil {
		return nil, err
	}
	if !tok.JoinsServers() {
		return nil, fmt.Errorf("%w: a server joins with the server token only, and this is an agent's or a bootstrap token; take the one in %s on %s",
			clientaccess.ErrRefused, layout.Data(layout.DefaultDataDir).Server("token"), server)
	}
	var bundle bootstrap.Bundle
	for {
		bundle, err = fetchBundle(ctx, server, tok)
		if err == nil {
			break
		}
		if errors.Is(err, clientaccess.ErrRefused) || ctx.Err() != nil {
			return nil, err
		}
		logrus.Errorf("failed to reach %s, retrying: %v", server, err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(joinRetry):
		}
	}
	if err := bundle.Settings.Mismatch(critical(cfg)); err != nil {
		return nil, err
	}
	if own, theirs := cfg.AgentToken, string(bundle.Files["agent-token"]); own != "" && !sameToken(own, theirs) {
		return nil, errors.New("failed to validate server configuration: critical configuration value mismatch between servers: agent-token; set it alike on all")
	}
	if err := bundle.Write(cfg.DataDir); err != nil {
		return nil, err
	}
	return withRegistrationAddress(bundle.Members, server)
}

func fetchBundle(ctx context.Context, server string, tok token.Token) (bootstrap.Bundle, error) {
	var bundle bootstrap.Bundle
	ca, err := clientaccess.FetchCA(ctx, server, tok)
	if err != nil {
		return bundle, err
	}
	client := clientaccess.Trusting(ca)
	defer client.CloseIdleConnections()
	content, err := clientaccess.Get(ctx, client, server+bootstrap.Path, func(r *http.Request) { r.SetBasicAuth("server", tok.Bearer) })
	var status *clientaccess.StatusError
	switch {
	case errors.As(err, &status) && status.Code == http.StatusUnauthorized:
		return bundle, fmt.Errorf("%w: token rejected (401 Unauthorized): it is not the server token of the cluster at %s", clientaccess.ErrRefused, server)
	case errors.As(err, &status) && status.Code == http.StatusConflict:
		return bundle, fmt.Errorf("%w: %s: the server at %s was not started with cluster-init", clientaccess.ErrRefused, bootstrap.Disabled, server)
	case errors.As(err, &status) && status.Code == http.StatusForbidden, errors.As(err, &status) && status.Code == http.StatusNotFound:
		return bundle, fmt.Errorf("%w: %s takes no further servers: %v", clientaccess.ErrRefused, server, err)
	case err != nil:
		return bundle, err
	}
	if err := json.Unmarshal(content, &bundle); err != nil {
		return bundle, fmt.Errorf("%s%s: %w", server, bootstrap.Path, err)
	}
	return bundle, bundle.Check()
}

// withRegistrationAddress adds the server that was asked, whose list of members
// may be older than its last failure.
func withRegistrationAddress(members []string, server string) ([]string, error) {
	parsed, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	asked := "https://" + net.JoinHostPort(parsed.Hostname(), layout.EtcdClientPort)
	if !slices.Contains(members, asked) {
		members = append(members, asked)
	}
	return members, nil
}

func sameToken(a, b string) bool {
	one, err := token.Parse(a)
	if err != nil {
		return false
	}
	other, err := token.Parse(b)
	return err == nil && one.Bearer == other.Bearer
}

// critical are the settings in which servers must not differ.
func critical(cfg *config.Config) bootstrap.Settings {
	return bootstrap.Settings{
		ClusterCIDR: cfg.ClusterCIDR, ServiceCIDR: cfg.ServiceCIDR, ClusterDNS: cfg.ClusterDNS, ClusterDomain: cfg.ClusterDomain,
		Disable: cfg.Disable,
	}
}
