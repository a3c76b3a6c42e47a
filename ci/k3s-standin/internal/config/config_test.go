package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// writeConfig makes a configuration file with drop-ins and returns its path.
func writeConfig(t *testing.T, main string, dropIns map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if main != "" {
		write(t, path, main)
	}
	for name, content := range dropIns {
		write(t, filepath.Join(path+".d", name), content)
	}
	return path
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// load reads settings with none of the caller's environment in them.
func load(t *testing.T, role string, args ...string) *Config {
	t.Helper()
	for variable := range environment {
		if os.Getenv(variable) != "" && !strings.HasPrefix(os.Getenv(variable), "test-") {
			t.Setenv(variable, "")
		}
	}
	config, err := Load(role, append([]string{"--node-ip=192.0.2.1"}, args...))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestTheLastFileWinsAndPlusAppends(t *testing.T) {
	path := writeConfig(t, `
node-name: first
cluster-cidr: 10.1.0.0/16
tls-san: [a.example]
node-label:
  - zone=a
`, map[string]string{
		"20-later.yaml":   "node-name: third\nnode-label+: [disk=ssd]\n",
		"10-earlier.yaml": "node-name: second\ntls-san+: b.example\n",
		"30-ignored.txt":  "node-name: never\n",
	})
	config := load(t, "server", "--config", path)
	if config.NodeName != "third" {
		t.Errorf("node-name: got %q", config.NodeName)
	}
	if config.ClusterCIDR != "10.1.0.0/16" {
		t.Errorf("cluster-cidr: got %q", config.ClusterCIDR)
	}
	if want := []string{"a.example", "b.example"}; !reflect.DeepEqual(config.TLSSAN, want) {
		t.Errorf("tls-san: got %q", config.TLSSAN)
	}
	if want := []string{"zone=a", "disk=ssd"}; !reflect.DeepEqual(config.NodeLabels, want) {
		t.Errorf("node-label: got %q", config.NodeLabels)
	}
}

func TestAKeyWithoutPlusReplacesAList(t *testing.T) {
	path := writeConfig(t, "kubelet-arg: [a=1, b=2]\n", map[string]string{"x.yml": "kubelet-arg: c=3\n"})
	if config := load(t, "server", "-c", path); !reflect.DeepEqual(config.KubeletArgs, []string{"c=3"}) {
		t.Errorf("got %q", config.KubeletArgs)
	}
}

func TestTheCommandLineBeatsFilesAndFilesBeatTheEnvironment(t *testing.T) {
	t.Setenv("K3S_NODE_NAME", "test-environment")
	t.Setenv("K3S_DATA_DIR", "test-data")
	path := writeConfig(t, "node-name: file\nnode-label: [from=file]\n", nil)
	config := load(t, "server", "--config", path)
	if config.NodeName != "file" || config.DataDir != "test-data" {
		t.Errorf("got node name %q and data directory %q", config.NodeName, config.DataDir)
	}
	config = load(t, "server", "--config", path, "--node-name=line", "--node-label=from=line")
	if config.NodeName != "line" || !reflect.DeepEqual(config.NodeLabels, []string{"from=line"}) {
		t.Errorf("got node name %q and labels %q", config.NodeName, config.NodeLabels)
	}
}

func TestUnknownAndIgnoredKeysOnlyWarn(t *testing.T) {
	path := writeConfig(t, "no-such-option: 1\nflannel-iface: eth1\ncluster-init: true\ndisable: [traefik]\nwrite-kubeconfig-mode: 0644\n", nil)
	config := load(t, "server", "--config", path)
	if !config.ClusterInit {
		t.Error("cluster-init was ignored")
	}
	if config.KubeconfigMode != "0644" {
		t.Errorf("write-kubeconfig-mode: got %q", config.KubeconfigMode)
	}
	if !config.Disabled("traefik") || config.Disabled("coredns") {
		t.Errorf("disable: got %q", config.Disable)
	}
}

func TestTheTokenComesFromItsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "secret\n")
	config := load(t, "agent", "--config=/nonexistent", "--server=https://192.0.2.2:6443", "--token-file", file)
	if config.Token != "secret" {
		t.Errorf("got %q", config.Token)
	}
}

func TestSnapshotsAreTakenWithTheServersSettings(t *testing.T) {
	path := writeConfig(t, "node-name: First\ndata-dir: /srv/k3s\ntoken: secret\nno-such-option: 1\n", nil)
	options, rest, err := LoadSnapshot([]string{"--config", path, "--name", "before", "one", "-o", "json", "two"})
	if err != nil {
		t.Fatal(err)
	}
	if options.NodeName != "first" || options.DataDir != "/srv/k3s" || options.Dir != "/srv/k3s/server/db/snapshots" ||
		options.Name != "before" || options.Output != "json" || !reflect.DeepEqual(rest, []string{"one", "two"}) {
		t.Errorf("got %+v, %q", options, rest)
	}
	for _, dir := range []string{"--dir=/backup", "--etcd-snapshot-dir=/backup"} {
		if options, _, err := LoadSnapshot([]string{"--config", path, dir}); err != nil || options.Dir != "/backup" || options.Name != "on-demand" {
			t.Errorf("%s: got %+v, %v", dir, options, err)
		}
	}
}

func TestDefaultsFollowTheServiceNetwork(t *testing.T) {
	config := load(t, "server", "--config=/nonexistent", "--service-cidr=10.99.0.0/16")
	first, err := config.FirstServiceIP()
	if err != nil || first != "10.99.0.1" || config.ClusterDNS != "10.99.0.10" {
		t.Errorf("got %q, %q, %v", first, config.ClusterDNS, err)
	}
}

func TestWrongSettingsAreErrors(t *testing.T) {
	list := writeConfig(t, "- not\n- a mapping\n", nil)
	nested := writeConfig(t, "node-label: {a: b}\n", nil)
	for name, args := range map[string][]string{
		"a reset that joins":  {"server", "--config=/nonexistent", "--cluster-reset", "--server=https://192.0.2.2:6443"},
		"a restore alone":     {"server", "--config=/nonexistent", "--cluster-reset-restore-path=/x"},
		"an agent alone":      {"agent", "--config=/nonexistent"},
		"a stray word":        {"server", "--config=/nonexistent", "extra"},
		"an unknown option":   {"server", "--config=/nonexistent", "--no-such-option"},
		"a list as the file":  {"server", "--config", list},
		"a mapping as value":  {"server", "--config", nested},
		"no network":          {"server", "--config=/nonexistent", "--service-cidr=everything"},
		"a missing token":     {"server", "--config=/nonexistent", "--token-file=/nonexistent"},
		"no address":          {"server", "--config=/nonexistent", "--node-ip=eth0"},
		"not a number's port": {"server", "--config=/nonexistent", "--https-listen-port=many"},
	} {
		if _, err := Load(args[0], args[1:]); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
