// Package bootstrap is what one server must have of another to be one of the
// same cluster: the CAs with their keys, the service accounts' key, the agent
// token and the settings that all must share. It travels over K3s's path to who
// knows the server token, and lies sealed with that token in the datastore, so
// that a snapshot is enough to start over.
package bootstrap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"orch.dev/k3s-standin/internal/layout"
)

// files are below the server's state, those that are optional last.
var (
	files = []string{
		"tls/server-ca.crt", "tls/server-ca.key", "tls/request-header-ca.crt", "tls/request-header-ca.key",
		"tls/etcd/server-ca.crt", "tls/etcd/server-ca.key", "tls/etcd/peer-ca.crt", "tls/etcd/peer-ca.key",
		"tls/service.key",
	}
	optionalFiles = []string{"agent-token"}
)

// Settings are the ones that K3s calls critical.
type Settings struct {
	ClusterCIDR   string   `json:"clusterCIDR"`
	ServiceCIDR   string   `json:"serviceCIDR"`
	ClusterDNS    string   `json:"clusterDNS"`
	ClusterDomain string   `json:"clusterDomain"`
	Disable       []string `json:"disable"`
}

// Bundle is what a server hands to another.
type Bundle struct {
	Files    map[string][]byte `json:"files"`
	Settings Settings          `json:"settings"`
	// Members are the client URLs of etcd's members; never sealed.
	Members []string `json:"members,omitempty"`
}

// Mismatch names the first option in which two servers differ.
func (s Settings) Mismatch(own Settings) error {
	list := func(names []string) string {
		return strings.Join(slices.Compact(slices.Sorted(slices.Values(names))), ",")
	}
	for _, option := range []struct{ name, theirs, ours string }{
		{"cluster-cidr", s.ClusterCIDR, own.ClusterCIDR},
		{"service-cidr", s.ServiceCIDR, own.ServiceCIDR},
		{"cluster-dns", s.ClusterDNS, own.ClusterDNS},
		{"cluster-domain", s.ClusterDomain, own.ClusterDomain},
		{"disable", list(s.Disable), list(own.Disable)},
	} {
		if option.theirs != option.ours {
			return fmt.Errorf("failed to validate server configuration: critical configuration value mismatch between servers: %s is %q on the server to join and %q here; set it alike on all",
				option.name, option.theirs, option.ours)
		}
	}
	return nil
}

// Collect reads a server's bundle.
func Collect(data layout.Data) (Bundle, error) {
	b := Bundle{Files: map[string][]byte{}}
	for _, name := range append(slices.Clone(files), optionalFiles...) {
		content, err := os.ReadFile(data.Server(name))
		if os.IsNotExist(err) && slices.Contains(optionalFiles, name) {
			continue
		}
		if err != nil {
			return b, err
		}
		b.Files[name] = content
	}
	content, err := os.ReadFile(data.CriticalSettings())
	if err != nil {
		return b, err
	}
	return b, json.Unmarshal(content, &b.Settings)
}

// WriteSettings leaves a server's settings where Collect reads them.
func WriteSettings(data layout.Data, s Settings) error {
	content, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return layout.WriteFile(data.CriticalSettings(), content, 0o600)
}

// Check tells whether a bundle is whole and holds nothing that this server has
// not asked for.
func (b Bundle) Check() error {
	for _, name := range files {
		if len(b.Files[name]) == 0 {
			return fmt.Errorf("the bootstrap data lacks %s", name)
		}
	}
	for name := range b.Files {
		if !slices.Contains(files, name) && !slices.Contains(optionalFiles, name) {
			return fmt.Errorf("the bootstrap data holds an unknown file %q", name)
		}
	}
	return nil
}

// Write makes a server's files those of the bundle.
func (b Bundle) Write(data layout.Data) error {
	if err := b.Check(); err != nil {
		return err
	}
	for name, content := range b.Files {
		path := data.Server(name)
		if current, err := os.ReadFile(path); err == nil && bytes.Equal(current, content) {
			continue
		}
		mode := os.FileMode(0o600)
		if strings.HasSuffix(name, ".crt") {
			mode = 0o644
		}
		if err := layout.WriteFile(path, content, mode); err != nil {
			return err
		}
	}
	return nil
}
