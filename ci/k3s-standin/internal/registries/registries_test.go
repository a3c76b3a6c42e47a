package registries

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

const example = `
mirrors:
  docker.io:
    endpoint: ["http://192.0.2.1:5000", "https://mirror.example/proxy/v2"]
  quay.io:
    endpoint: ["mirror.example"]
    rewrite:
      "^(.*)$": "quay/$1"
  "*":
    endpoint: ["https://any.example"]
configs:
  "192.0.2.1:5000":
    auth: {username: u, password: 'p"\ '}
  mirror.example:
    tls: {ca_file: /ca.crt, cert_file: /c.crt, key_file: /c.key}
  docker.io:
    auth: {identity_token: t}
  plain.example:
    tls: {insecure_skip_verify: true}
`

func read(t *testing.T, text string) File {
	t.Helper()
	file, err := parse([]byte(text), "registries.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestHosts(t *testing.T) {
	hosts, err := read(t, example).Hosts(false)
	if err != nil {
		t.Fatal(err)
	}
	for directory, want := range map[string]string{
		"docker.io": `server = "https://registry-1.docker.io"

[host."http://192.0.2.1:5000"]
  capabilities = ["pull", "resolve"]

[host."https://mirror.example/proxy/v2"]
  capabilities = ["pull", "resolve"]
  override_path = true
  ca = ["/ca.crt"]
  client = [["/c.crt", "/c.key"]]
`,
		"quay.io": `server = "https://quay.io"

[host."https://mirror.example/v2/quay"]
  capabilities = ["pull", "resolve"]
  override_path = true
  ca = ["/ca.crt"]
  client = [["/c.crt", "/c.key"]]
`,
		"_default": `
[host."https://any.example"]
  capabilities = ["pull", "resolve"]
`,
		"plain.example": `server = "https://plain.example"
skip_verify = true
`,
		"mirror.example": `server = "https://mirror.example"
ca = ["/ca.crt"]
client = [["/c.crt", "/c.key"]]
`,
	} {
		if hosts[directory] != want {
			t.Errorf("%s:\n%s\nwant:\n%s", directory, hosts[directory], want)
		}
	}
	if len(hosts) != 5 {
		t.Errorf("got %d directories", len(hosts))
	}
}

func TestWithoutTheDefaultEndpointOnlyMirrorsAreAsked(t *testing.T) {
	hosts, err := read(t, example).Hosts(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, directory := range []string{"docker.io", "quay.io", "_default"} {
		if text := hosts[directory]; strings.Contains(text, "registry-1") || strings.Contains(text, `"https://quay.io"`) || !strings.HasPrefix(text, "server = ") {
			t.Errorf("%s:\n%s", directory, text)
		}
	}
}

func TestEverythingWrittenIsTOML(t *testing.T) {
	file := read(t, example)
	for _, noDefault := range []bool{false, true} {
		hosts, err := file.Hosts(noDefault)
		if err != nil {
			t.Fatal(err)
		}
		for directory, text := range hosts {
			var parsed map[string]any
			if err := toml.Unmarshal([]byte(text), &parsed); err != nil {
				t.Errorf("%s: %v\n%s", directory, err, text)
			}
		}
	}
	var parsed struct {
		Plugins map[string]struct {
			Registry struct {
				Configs map[string]struct{ Auth map[string]string }
			}
		}
	}
	if err := toml.Unmarshal([]byte(file.AuthTOML()), &parsed); err != nil {
		t.Fatalf("%v\n%s", err, file.AuthTOML())
	}
	configs := parsed.Plugins["io.containerd.grpc.v1.cri"].Registry.Configs
	if auth := configs["192.0.2.1:5000"].Auth; auth["username"] != "u" || auth["password"] != `p"\ ` {
		t.Errorf("got %q", auth)
	}
	if auth := configs["registry-1.docker.io"].Auth; auth["identitytoken"] != "t" {
		t.Errorf("got %q", auth)
	}
}

func TestRefused(t *testing.T) {
	for name, text := range map[string]string{
		"not YAML":        "mirrors: [",
		"not a mapping":   "mirrors: [a, b]",
		"not an http URL": "mirrors: {docker.io: {endpoint: ['ftp://x']}}",
		"no host":         "mirrors: {docker.io: {endpoint: ['http://']}}",
	} {
		if _, err := parse([]byte(text), "registries.yaml"); err == nil || !strings.Contains(err.Error(), "registries.yaml") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for _, rewrite := range []string{`"^library/(.*)$": "x/$1"`, `"^(.*)$": "x/$1-y"`, `"^(.*)$": "$1"`, `"a": "b", "c": "d"`} {
		file := read(t, "mirrors: {docker.io: {endpoint: [a], rewrite: {"+rewrite+"}}}")
		if _, err := file.Hosts(false); err == nil {
			t.Errorf("rewrite %s was accepted", rewrite)
		}
	}
}

func TestAMissingFileIsEmpty(t *testing.T) {
	file, err := Read(filepath.Join(t.TempDir(), "none.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if hosts, err := file.Hosts(true); err != nil || len(hosts) != 0 || file.AuthTOML() != "" {
		t.Errorf("got %v, %v, %q", hosts, err, file.AuthTOML())
	}
}
