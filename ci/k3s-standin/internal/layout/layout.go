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
