// Package registries turns K3s's registries.yaml into what containerd 1.6
// reads: one hosts.toml per registry, and the credentials that belong in its
// main configuration. It only computes; the caller writes.
package registries

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	dockerHub     = "docker.io"
	dockerHubHost = "registry-1.docker.io"
	// containerd reads the `*` mirror from a directory of this name.
	wildcard    = "*"
	wildcardDir = "_default"
)

// File is registries.yaml.
type File struct {
	Mirrors map[string]Mirror `yaml:"mirrors"`
	Configs map[string]Config `yaml:"configs"`
}

// Mirror says where images of a registry are looked for.
type Mirror struct {
	Endpoints []string          `yaml:"endpoint"`
	Rewrites  map[string]string `yaml:"rewrite"`
}

// Config says how to talk to one host.
type Config struct {
	Auth *Auth `yaml:"auth"`
	TLS  *TLS  `yaml:"tls"`
}

// Auth is a host's credential, in one of its three forms.
type Auth struct {
	Username      string `yaml:"username"`
	Password      string `yaml:"password"`
	Auth          string `yaml:"auth"`
	IdentityToken string `yaml:"identity_token"`
}

// TLS is a host's trust.
type TLS struct {
	CAFile             string `yaml:"ca_file"`
	CertFile           string `yaml:"cert_file"`
	KeyFile            string `yaml:"key_file"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
}

// Read parses the file at path; a missing file is an empty one.
func Read(path string) (File, error) {
	content, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return File{}, nil
	}
	if err != nil {
		return File{}, err
	}
	return parse(content, path)
}

func parse(content []byte, path string) (File, error) {
	var file File
	if err := yaml.Unmarshal(content, &file); err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	for name, mirror := range file.Mirrors {
		for _, endpoint := range mirror.Endpoints {
			if _, err := parseEndpoint(endpoint); err != nil {
				return File{}, fmt.Errorf("%s: mirror %q: %w", path, name, err)
			}
		}
	}
	return file, nil
}

// Hosts returns the hosts.toml of each registry, by the name of its directory.
// noDefault keeps containerd from falling back to the registry itself.
func (f File) Hosts(noDefault bool) (map[string]string, error) {
	hosts := map[string]string{}
	for name, mirror := range f.Mirrors {
		text, err := f.mirrorHosts(name, mirror, noDefault)
		if err != nil {
			return nil, fmt.Errorf("mirror %q: %w", name, err)
		}
		directory := name
		if name == wildcard {
			directory = wildcardDir
		}
		hosts[directory] = text
	}
	// A host with TLS settings and no mirror still needs a file to carry them.
	for name, config := range f.Configs {
		if _, mirrored := f.Mirrors[name]; mirrored || config.TLS == nil {
			continue
		}
		var out strings.Builder
		fmt.Fprintf(&out, "server = %s\n", quote("https://"+name))
		writeTLS(&out, "", config.TLS)
		hosts[name] = out.String()
	}
	return hosts, nil
}

func (f File) mirrorHosts(name string, mirror Mirror, noDefault bool) (string, error) {
	prefix, err := rewritePrefix(mirror.Rewrites)
	if err != nil {
		return "", err
	}
	var endpoints []*url.URL
	for _, text := range mirror.Endpoints {
		endpoint, err := parseEndpoint(text)
		if err != nil {
			return "", err
		}
		endpoints = append(endpoints, endpoint)
	}

	var out strings.Builder
	switch {
	case noDefault && len(endpoints) > 0:
		// containerd always tries `server` last: name a mirror again rather
		// than let it choose the registry.
		server, override := hostURL(endpoints[0], prefix)
		fmt.Fprintf(&out, "server = %s\n", quote(server))
		writeOverride(&out, "", override)
		writeTLS(&out, "", f.tls(endpoints[0].Host))
	case name == dockerHub:
		fmt.Fprintf(&out, "server = %s\n", quote("https://"+dockerHubHost))
		writeTLS(&out, "", f.tls(dockerHub))
	case name != wildcard:
		fmt.Fprintf(&out, "server = %s\n", quote("https://"+name))
		writeTLS(&out, "", f.tls(name))
	}
	for _, endpoint := range endpoints {
		host, override := hostURL(endpoint, prefix)
		fmt.Fprintf(&out, "\n[host.%s]\n  capabilities = [\"pull\", \"resolve\"]\n", quote(host))
		writeOverride(&out, "  ", override)
		writeTLS(&out, "  ", f.tls(endpoint.Host))
	}
	return out.String(), nil
}

func (f File) tls(host string) *TLS {
	if config, ok := f.Configs[host]; ok {
		return config.TLS
	}
	return nil
}

// AuthTOML returns the part of containerd's configuration that holds the
// credentials; the file that it goes into must not be readable by others.
func (f File) AuthTOML() string {
	names := make([]string, 0, len(f.Configs))
	for name := range f.Configs {
		names = append(names, name)
	}
	sort.Strings(names)
	var out strings.Builder
	for _, name := range names {
		auth := f.Configs[name].Auth
		if auth == nil {
			continue
		}
		if name == dockerHub {
			name = dockerHubHost
		}
		fmt.Fprintf(&out, "\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.%s.auth]\n", quote(name))
		for _, field := range []struct{ key, value string }{
			{"username", auth.Username}, {"password", auth.Password},
			{"auth", auth.Auth}, {"identitytoken", auth.IdentityToken},
		} {
			if field.value != "" {
				fmt.Fprintf(&out, "  %s = %s\n", field.key, quote(field.value))
			}
		}
	}
	return out.String()
}

// parseEndpoint accepts what K3s accepts: a URL, or a bare host for https.
func parseEndpoint(text string) (*url.URL, error) {
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	endpoint, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	if endpoint.Host == "" || (endpoint.Scheme != "http" && endpoint.Scheme != "https") {
		return nil, fmt.Errorf("endpoint %q is not an http or https URL", text)
	}
	return endpoint, nil
}

// hostURL returns the URL for hosts.toml and whether its path replaces the
// registry API's own /v2, as it does for an endpoint that has a path.
func hostURL(endpoint *url.URL, prefix string) (string, bool) {
	path := strings.TrimSuffix(endpoint.Path, "/")
	base := endpoint.Scheme + "://" + endpoint.Host
	switch {
	case path == "" && prefix == "":
		return base, false
	case path == "":
		path = "/v2"
	}
	if prefix != "" {
		path += "/" + prefix
	}
	return base + path, true
}

var wholeName = regexp.MustCompile(`^\^?\(\.[*+]\)\$?$`)

// rewritePrefix supports the rewrite that puts a prefix before every name,
// "^(.*)$": "prefix/$1". General rewrites exist in K3s's own containerd only.
func rewritePrefix(rewrites map[string]string) (string, error) {
	for pattern, replacement := range rewrites {
		prefix, found := strings.CutSuffix(replacement, "/$1")
		if len(rewrites) == 1 && wholeName.MatchString(pattern) && found && prefix != "" && !strings.Contains(prefix, "$") {
			return strings.Trim(prefix, "/"), nil
		}
		return "", fmt.Errorf("the K3s stand-in supports the rewrite \"^(.*)$\": \"prefix/$1\" only, not %q: %q", pattern, replacement)
	}
	return "", nil
}

func writeOverride(out *strings.Builder, indent string, override bool) {
	if override {
		fmt.Fprintf(out, "%soverride_path = true\n", indent)
	}
}

func writeTLS(out *strings.Builder, indent string, tls *TLS) {
	if tls == nil {
		return
	}
	if tls.CAFile != "" {
		fmt.Fprintf(out, "%sca = [%s]\n", indent, quote(tls.CAFile))
	}
	if tls.CertFile != "" || tls.KeyFile != "" {
		fmt.Fprintf(out, "%sclient = [[%s, %s]]\n", indent, quote(tls.CertFile), quote(tls.KeyFile))
	}
	if tls.InsecureSkipVerify {
		fmt.Fprintf(out, "%sskip_verify = true\n", indent)
	}
}

// quote writes a TOML basic string, whose escapes are a superset of JSON's.
func quote(text string) string {
	encoded, err := json.Marshal(text)
	if err != nil {
		return `""`
	}
	return string(encoded)
}
