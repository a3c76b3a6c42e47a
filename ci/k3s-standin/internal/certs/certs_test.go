package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	certutil "k8s.io/client-go/util/cert"

	"orch.dev/k3s-standin/internal/layout"
)

func cluster(t *testing.T) Cluster {
	t.Helper()
	c := Cluster{
		Data: layout.Data(t.TempDir()), NodeName: "master", Domain: "cluster.local", ServiceIP: "10.43.0.1", APIPort: 6443,
		Addresses: []string{"192.0.2.1"}, NodeIP: "192.0.2.1",
	}
	if err := Ensure(c); err != nil {
		t.Fatal(err)
	}
	return c
}

func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		files[path], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestASecondStartChangesNothing(t *testing.T) {
	c := cluster(t)
	before := contents(t, c.Data.Server())
	if err := Ensure(c); err != nil {
		t.Fatal(err)
	}
	after := contents(t, c.Data.Server())
	if len(before) < 20 || len(before) != len(after) {
		t.Errorf("%d files before, %d after", len(before), len(after))
	}
	for path, content := range before {
		if !bytes.Equal(content, after[path]) {
			t.Errorf("%s changed", path)
		}
	}
}

func TestANewAddressRenewsTheServersCertificateOnly(t *testing.T) {
	c := cluster(t)
	before := contents(t, c.Data.Server())
	c.Addresses = append(c.Addresses, "192.0.2.2", "api.example")
	if err := Ensure(c); err != nil {
		t.Fatal(err)
	}
	serving := c.Data.Server("tls", "serving-kube-apiserver.crt")
	for path, content := range contents(t, c.Data.Server()) {
		changed := !bytes.Equal(content, before[path])
		expected := path == serving || path == c.Data.Server("tls", "serving-kube-apiserver.key")
		if changed != expected {
			t.Errorf("%s: changed is %v", path, changed)
		}
	}
	certs, err := certutil.CertsFromFile(serving)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"192.0.2.1", "192.0.2.2", "api.example", "10.43.0.1", "127.0.0.1", "kubernetes.default.svc.cluster.local"} {
		if err := certs[0].VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
}

func TestAMembersCertificatesAreForItsAddress(t *testing.T) {
	c := cluster(t)
	for name, ca := range map[string]string{"server-client": "server-ca", "peer-server-client": "peer-ca"} {
		leaf, err := certutil.CertsFromFile(c.Data.Server("tls", "etcd", name+".crt"))
		if err != nil {
			t.Fatal(err)
		}
		roots, err := certutil.NewPool(c.Data.Server("tls", "etcd", ca+".crt"))
		if err != nil {
			t.Fatal(err)
		}
		for _, address := range []string{"192.0.2.1", "127.0.0.1", "master"} {
			for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
				if _, err := leaf[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: address, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

func TestOtherCAsRenewEveryCertificate(t *testing.T) {
	c, other := cluster(t), cluster(t)
	for _, name := range []string{"server-ca", "request-header-ca", "etcd/server-ca", "etcd/peer-ca"} {
		for _, ext := range []string{".crt", ".key"} {
			content, err := os.ReadFile(other.Data.Server("tls", name+ext))
			if err != nil {
				t.Fatal(err)
			}
			if err := layout.WriteFile(c.Data.Server("tls", name+ext), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := contents(t, c.Data.Server())
	if err := Ensure(c); err != nil {
		t.Fatal(err)
	}
	for path, content := range contents(t, c.Data.Server()) {
		isCA := strings.Contains(filepath.Base(path), "-ca.")
		if changed := !bytes.Equal(content, before[path]); changed == isCA && filepath.Base(path) != "service.key" {
			t.Errorf("%s: changed is %v", path, changed)
		}
	}
}

func TestTheAdminKubeconfigIsK3ss(t *testing.T) {
	c := cluster(t)
	path := filepath.Join(t.TempDir(), "etc", "k3s.yaml")
	if err := c.WriteAdminKubeconfig(path, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	config, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if config.CurrentContext != "default" || len(config.Contexts) != 1 || config.Clusters["default"].Server != "https://127.0.0.1:6443" {
		t.Errorf("got %+v", config)
	}
	user := config.AuthInfos["default"]
	if _, err := tls.X509KeyPair(user.ClientCertificateData, user.ClientKeyData); err != nil {
		t.Error(err)
	}
}
