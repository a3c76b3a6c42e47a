package addons

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
)

func settings(t *testing.T, disable ...string) *config.Config {
	t.Helper()
	return &config.Config{DataDir: layout.Data(t.TempDir()), ClusterDNS: "10.9.0.10", ClusterDomain: "example.local", Disable: disable}
}

func TestBundledManifestsAreObjects(t *testing.T) {
	cfg := settings(t)
	deployer, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	objects := 0
	for _, path := range deployer.manifests() {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
		for {
			var object unstructured.Unstructured
			if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if object.GetKind() == "" || object.GetName() == "" {
				t.Errorf("%s: an object without kind or name", path)
			}
			objects++
		}
		if strings.Contains(string(content), "{{") {
			t.Errorf("%s: not rendered", path)
		}
	}
	if objects < 15 {
		t.Errorf("only %d objects", objects)
	}
	coredns, err := os.ReadFile(cfg.DataDir.Server("manifests", "coredns.yaml"))
	if err != nil || !strings.Contains(string(coredns), "clusterIP: 10.9.0.10") || !strings.Contains(string(coredns), "kubernetes example.local") {
		t.Errorf("coredns.yaml lacks the settings: %v", err)
	}
}

func TestDisabledPartsAreNotDeployed(t *testing.T) {
	cfg := settings(t)
	if _, err := New(cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Disable = []string{"coredns", "rbac"}
	deployer, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	listed := strings.Join(deployer.manifests(), " ")
	if strings.Contains(listed, "coredns") || !strings.Contains(listed, "metrics-server") || !strings.Contains(listed, "rbac") {
		t.Errorf("got %s", listed)
	}
	if len(deployer.disabled) != 1 {
		t.Errorf("to be removed: %s", deployer.disabled)
	}
}

func TestSkippedAndHiddenFilesAreNotManifests(t *testing.T) {
	cfg := settings(t, optional...)
	deployer, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.yaml", "b.yaml", "b.yaml.skip", ".c.yaml.123", "d.txt", "sub/e.yml"} {
		if err := layout.WriteFile(cfg.DataDir.Server("manifests", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	listed := deployer.manifests()
	if len(listed) != 3 || !strings.HasSuffix(listed[0], "/a.yaml") || !strings.HasSuffix(listed[2], "/sub/e.yml") {
		t.Errorf("got %s", listed)
	}
}
