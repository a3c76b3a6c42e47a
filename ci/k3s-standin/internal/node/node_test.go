package node

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	discovery "k8s.io/api/discovery/v1"

	"orch.dev/k3s-standin/internal/clientaccess"
	"orch.dev/k3s-standin/internal/component"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/token"
)

const goodToken = "abcdef.0123456789abcdef"

// newServer answers a join as the API server does, over real TLS, and returns
// its URL and the CA that its certificate is verified with.
func newServer(t *testing.T) (string, []byte) {
	t.Helper()
	var ca []byte
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+component.CACertsPath, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(ca) })
	mux.HandleFunc("GET "+component.ClusterPath, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"clusterCIDR":"10.42.0.0/16","serviceCIDR":"10.43.0.0/16","clusterDNS":"10.43.0.10","clusterDomain":"cluster.local"}`)
	})
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/selfsubjectreviews", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Header.Get("Authorization") != "Bearer "+goodToken {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Unauthorized","code":401}`)
			return
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"kind":"SelfSubjectReview","apiVersion":"authentication.k8s.io/v1"}`)
	})
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return server.URL, ca
}

func TestJoinWithAGoodToken(t *testing.T) {
	url, ca := newServer(t)
	cfg := &config.Config{DataDir: layout.Data(t.TempDir()), Token: token.Format(ca, goodToken)}
	id, cluster, err := join(context.Background(), cfg, Servers{Join: url, API: "https://127.0.0.1:6444"})
	if err != nil {
		t.Fatal(err)
	}
	if cluster != (Cluster{"10.42.0.0/16", "10.43.0.0/16", "10.43.0.10", "cluster.local"}) {
		t.Errorf("got %+v", cluster)
	}
	info, err := os.Stat(id.bootstrap())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the bootstrap kubeconfig: %v, %v", info, err)
	}
	for _, path := range []string{id.bootstrap(), id.kubeconfig()} {
		if content, err := os.ReadFile(path); err != nil || !strings.Contains(string(content), "server: https://127.0.0.1:6444\n") {
			t.Errorf("%s does not lead to the load balancer: %v", path, err)
		}
	}
}

func TestJoinRefuses(t *testing.T) {
	url, ca := newServer(t)
	for name, c := range map[string]struct{ token, want string }{
		"a wrong hash":     {token.Format([]byte("another CA"), goodToken), "token CA hash does not match"},
		"an unknown token": {token.Format(ca, "abcdef.ffffffffffffffff"), "token rejected"},
		"no token":         {"", "token is required"},
		"nonsense":         {"K10x::y", "malformed token"},
	} {
		data := layout.Data(t.TempDir())
		id, _, err := join(context.Background(), &config.Config{DataDir: data, Token: c.token}, Servers{Join: url, API: url})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := os.Stat(id.bootstrap()); err == nil {
			t.Errorf("%s: left a credential behind", name)
		}
	}
}

func TestJoinWaitsForAServerThatIsAway(t *testing.T) {
	_, ca := newServer(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	cfg := &config.Config{DataDir: layout.Data(t.TempDir()), Token: token.Format(ca, goodToken)}
	if _, _, err := join(ctx, cfg, Servers{Join: "https://127.0.0.1:1", API: "https://127.0.0.1:1"}); err == nil || errors.Is(err, clientaccess.ErrRefused) {
		t.Errorf("got %v", err)
	}
}

func TestTheServersAreThoseOfTheService(t *testing.T) {
	port, ready, away := int32(6443), true, false
	slices := []*discovery.EndpointSlice{
		{Ports: []discovery.EndpointPort{{Port: &port}}, Endpoints: []discovery.Endpoint{
			{Addresses: []string{"192.0.2.1"}}, {Addresses: []string{"192.0.2.2"}, Conditions: discovery.EndpointConditions{Ready: &away}},
		}},
		{Ports: []discovery.EndpointPort{{Port: &port}}, Endpoints: []discovery.Endpoint{
			{Addresses: []string{"2001:db8::1"}, Conditions: discovery.EndpointConditions{Ready: &ready}},
		}},
		{Endpoints: []discovery.Endpoint{{Addresses: []string{"192.0.2.3"}}}},
	}
	if got := serverAddresses(slices); !reflect.DeepEqual(got, []string{"192.0.2.1:6443", "[2001:db8::1]:6443"}) {
		t.Errorf("got %q", got)
	}
}

func TestOnlyRoutableNameServersAreForPods(t *testing.T) {
	for text, want := range map[string]bool{
		"nameserver 192.0.2.53\nsearch x\n":                true,
		"nameserver 127.0.0.11\noptions ndots:0\n":         false,
		"nameserver 192.0.2.53\nnameserver 127.0.0.53\n":   false,
		"nameserver fe80::1%eth0\n":                        false,
		"# nameserver 192.0.2.53\nsearch nothing.example.": false,
		"": false,
	} {
		if usableByPods(text) != want {
			t.Errorf("%q: want %v", text, want)
		}
	}
}

func TestArchivesAreKnownByName(t *testing.T) {
	if decompressor("images.txt") != nil || decompressor("k3s-airgap-images-amd64.tar.zst.part") != nil {
		t.Error("took a file for an archive that is none")
	}
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := decompressor("k3s-airgap-images-amd64.tar.zst")(strings.NewReader(string(encoder.EncodeAll([]byte("content"), nil))))
	if err != nil {
		t.Fatal(err)
	}
	if content, err := io.ReadAll(reader); err != nil || string(content) != "content" {
		t.Errorf("got %q, %v", content, err)
	}
}
