package server

import (
	"context"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"orch.dev/k3s-standin/internal/bootstrap"
	"orch.dev/k3s-standin/internal/clientaccess"
	"orch.dev/k3s-standin/internal/component"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/token"
)

func joiner(t *testing.T) *config.Config {
	return &config.Config{
		DataDir: layout.Data(t.TempDir()), NodeName: "second", NodeIP: "192.0.2.2", AdvertiseAddress: "192.0.2.2", HTTPSPort: 6443,
		ClusterCIDR: "10.42.0.0/16", ServiceCIDR: "10.43.0.0/16", ClusterDNS: "10.43.0.10", ClusterDomain: "cluster.local",
		Kubeconfig: t.TempDir() + "/k3s.yaml", KubeconfigMode: "0600",
	}
}

// newFirst is a server that others may join: its files are a real server's, and
// it answers as the API server does, over TLS. It returns the CA that its
// answers are verified with and its password.
func newFirst(t *testing.T, managed bool) (url string, ca []byte, first *config.Config) {
	t.Helper()
	first = joiner(t)
	first.NodeName, first.Token, first.AgentToken = "first", "secret", "agents only"
	if err := prepare(first); err != nil {
		t.Fatal(err)
	}
	if managed {
		if err := layout.WriteFile(first.DataDir.EtcdName(), []byte("first-00000000"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := bootstrap.WriteMembers(first.DataDir, []string{"https://192.0.2.1:2379"}); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+component.CACertsPath, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(ca) })
	mux.HandleFunc("GET "+bootstrap.Path, bootstrap.Handler(first.DataDir))
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return server.URL, ca, first
}

func TestAServerThatJoinsHasTheClustersKeys(t *testing.T) {
	url, ca, first := newFirst(t, true)
	for name, text := range map[string]string{"in full": token.Format(ca, "server:secret"), "in short": "secret"} {
		cfg := joiner(t)
		cfg.ServerURL, cfg.Token = url, text
		members, err := joinServer(t.Context(), cfg)
		if err != nil || !slices.Equal(members, []string{"https://192.0.2.1:2379", "https://127.0.0.1:2379"}) {
			t.Fatalf("%s: got %q, %v", name, members, err)
		}
		if err := prepare(cfg); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"tls/server-ca.key", "tls/etcd/peer-ca.crt", "tls/service.key", "token", "agent-token", "cred/passwd.csv"} {
			want, err := os.ReadFile(first.DataDir.Server(file))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(cfg.DataDir.Server(file)); err != nil || string(got) != string(want) {
				t.Errorf("%s: %s differs: %v", name, file, err)
			}
		}
	}
}

func TestAServerIsRefused(t *testing.T) {
	url, ca, _ := newFirst(t, true)
	alone, aloneCA, _ := newFirst(t, false)
	for name, c := range map[string]struct {
		url, token, want string
		change           func(*config.Config)
	}{
		"no token":           {url, "", "token is required", nil},
		"another CA":         {url, token.Format([]byte("x"), "server:secret"), "token CA hash does not match", nil},
		"an agent's token":   {url, token.Format(ca, "node:agents only"), "the server token only", nil},
		"a bootstrap token":  {url, token.Format(ca, "abcdef.0123456789abcdef"), "the server token only", nil},
		"an agent's, hidden": {url, token.Format(ca, "server:agents only"), "token rejected (401 Unauthorized)", nil},
		"no cluster-init":    {alone, token.Format(aloneCA, "server:secret"), "not started with cluster-init", nil},
		"another network":    {url, token.Format(ca, "server:secret"), "mismatch between servers: cluster-cidr", func(c *config.Config) { c.ClusterCIDR = "10.9.0.0/16" }},
		"other agents":       {url, token.Format(ca, "server:secret"), "agent-token", func(c *config.Config) { c.AgentToken = "another" }},
		"no https":           {"http://192.0.2.1", token.Format(ca, "server:secret"), "not an https URL", nil},
		"a cluster of its own": {url, token.Format(ca, "server:secret"), "cluster of its own", func(c *config.Config) {
			if err := os.MkdirAll(c.DataDir.Etcd("member", "wal"), 0o700); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		cfg := joiner(t)
		cfg.ServerURL, cfg.Token = c.url, c.token
		if c.change != nil {
			c.change(cfg)
		}
		_, err := joinServer(t.Context(), cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") && c.token != "" {
			t.Errorf("%s: the error tells the token: %v", name, err)
		}
		if _, err := os.Stat(cfg.DataDir.Server("tls")); err == nil {
			t.Errorf("%s: left keys behind", name)
		}
	}
}

func TestAServerWaitsForOneThatIsAway(t *testing.T) {
	cfg := joiner(t)
	cfg.ServerURL, cfg.Token = "https://127.0.0.1:1", "secret"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := joinServer(ctx, cfg); err == nil || errors.Is(err, clientaccess.ErrRefused) {
		t.Errorf("got %v", err)
	}
}

func TestAResetKeepsItsOwnTokenAndDropsAnother(t *testing.T) {
	for text, kept := range map[string]bool{"secret": true, "another": false} {
		file := t.TempDir() + "/token"
		if err := layout.WriteFile(file, []byte(token.Format([]byte("a CA"), "server:"+text)), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := dropOtherToken(file, token.Token{Bearer: "secret"}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(file); (err == nil) != kept {
			t.Errorf("%s: got %v", text, err)
		}
	}
}
