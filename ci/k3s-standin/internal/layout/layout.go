// Package layout knows where K3s keeps its files; nothing else in the stand-in
// spells a path out.
package layout

import (
	"os"
	"path/filepath"
)

// Fixed locations, the same as K3s's.
const (
	DefaultDataDir     = "/var/lib/rancher/k3s"
	ConfigFile         = "/etc/rancher/k3s/config.yaml"
	RegistriesFile     = "/etc/rancher/k3s/registries.yaml"
	AdminKubeconfig    = "/etc/rancher/k3s/k3s.yaml"
	ContainerdState    = "/run/k3s/containerd"
	ContainerdSocket   = "/run/k3s/containerd/containerd.sock"
	ContainerNamespace = "k8s.io"
	KubeletRoot        = "/var/lib/kubelet"
)

// EtcdClientPort and EtcdPeerPort are etcd's own.
const (
	EtcdClientPort = "2379"
	EtcdPeerPort   = "2380"
)

// Data is a K3s data directory.
type Data string

// Server joins elem below the server's state.
func (d Data) Server(elem ...string) string {
	return filepath.Join(append([]string{string(d), "server"}, elem...)...)
}

// Agent joins elem below the node's state.
func (d Data) Agent(elem ...string) string {
	return filepath.Join(append([]string{string(d), "agent"}, elem...)...)
}

// ServerCA is the PEM file of the CA that signs every certificate of the
// cluster; a token carries the SHA-256 of exactly these bytes.
func (d Data) ServerCA() string { return d.Server("tls", "server-ca.crt") }

// Credential is a server-side kubeconfig or password file.
func (d Data) Credential(name string) string { return d.Server("cred", name) }

// Etcd joins elem below etcd's data directory.
func (d Data) Etcd(elem ...string) string {
	return d.Server(append([]string{"db", "etcd"}, elem...)...)
}

// Etcd's files beside its own data. The name of the member is there only where
// K3s would run etcd and not SQLite: since cluster-init, a join or a reset.
func (d Data) EtcdName() string    { return d.Etcd("name") }
func (d Data) EtcdMembers() string { return d.Server("db", "etcd-members.json") }
func (d Data) ResetFlag() string   { return d.Server("db", "reset-flag") }
func (d Data) Snapshots() string   { return d.Server("db", "snapshots") }

// CriticalSettings is what all servers of a cluster must agree on.
func (d Data) CriticalSettings() string { return d.Server("critical.json") }

// ManagedEtcd tells whether K3s would run etcd here.
func (d Data) ManagedEtcd() bool { return exists(d.EtcdName()) }

// EtcdInitialized tells whether etcd has ever started here.
func (d Data) EtcdInitialized() bool { return exists(d.Etcd("member", "wal")) }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// WriteFile replaces path atomically: the content reaches the disk under a
// temporary name first, so that a reader never sees half a file.
func WriteFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(content)
	if err == nil {
		err = file.Chmod(mode)
	}
	if err == nil {
		err = file.Sync()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
