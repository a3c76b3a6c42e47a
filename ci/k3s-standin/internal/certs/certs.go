// Package certs makes and keeps the server's keys, certificates and the
// kubeconfigs that carry them. What exists and is still right is left alone.
package certs

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/util/kubeconfig"
	"k8s.io/kubernetes/cmd/kubeadm/app/util/pkiutil"

	"orch.dev/k3s-standin/internal/layout"
)

const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	leafLifetime = 365 * 24 * time.Hour
	// K3s renews at start what expires within this time.
	renewBefore = 90 * 24 * time.Hour
)

// Cluster says whom the certificates are for.
type Cluster struct {
	Data      layout.Data
	NodeName  string
	Domain    string
	ServiceIP string
	Addresses []string
	// NodeIP is where other servers reach this one's etcd.
	NodeIP  string
	APIPort int
}

// authority is a CA's pair on disk, by its path without extension.
type authority struct {
	dir, name string
	cert      *x509.Certificate
	key       crypto.Signer
}

// Ensure leaves everything under server/tls and server/cred complete.
func Ensure(c Cluster) error {
	tls := c.Data.Server("tls")
	etcdDir := c.Data.Server("tls", "etcd")
	cluster, err := ensureAuthority(tls, "server-ca", "k3s-server-ca")
	if err != nil {
		return err
	}
	front, err := ensureAuthority(tls, "request-header-ca", "k3s-request-header-ca")
	if err != nil {
		return err
	}
	etcd, err := ensureAuthority(etcdDir, "server-ca", "etcd-server-ca")
	if err != nil {
		return err
	}

	peer, err := ensureAuthority(etcdDir, "peer-ca", "etcd-peer-ca")
	if err != nil {
		return err
	}

	local := certutil.AltNames{DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}
	api := local
	api.DNSNames = append([]string{c.NodeName, "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc." + c.Domain}, api.DNSNames...)
	api.IPs = append([]net.IP{net.ParseIP(c.ServiceIP)}, api.IPs...)
	for _, address := range c.Addresses {
		if ip := net.ParseIP(address); ip != nil {
			api.IPs = append(api.IPs, ip)
		} else {
			api.DNSNames = append(api.DNSNames, address)
		}
	}
	member := local
	member.DNSNames = append([]string{c.NodeName}, member.DNSNames...)
	if ip := net.ParseIP(c.NodeIP); ip != nil {
		member.IPs = append([]net.IP{ip}, member.IPs...)
	}

	server := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	leaves := []struct {
		dir, name string
		ca        *authority
		config    certutil.Config
	}{
		{tls, "serving-kube-apiserver", cluster, certutil.Config{CommonName: "kube-apiserver", AltNames: api, Usages: server}},
		{tls, "client-kube-apiserver", cluster, certutil.Config{CommonName: "system:apiserver", Organization: []string{"system:masters"}, Usages: client}},
		{tls, "client-auth-proxy", front, certutil.Config{CommonName: "system:auth-proxy", Usages: client}},
		{tls, "client-admin", cluster, certutil.Config{CommonName: "system:admin", Organization: []string{"system:masters"}, Usages: client}},
		{tls, "client-controller", cluster, certutil.Config{CommonName: "system:kube-controller-manager", Usages: client}},
		{tls, "client-scheduler", cluster, certutil.Config{CommonName: "system:kube-scheduler", Usages: client}},
		{etcdDir, "server-client", etcd, certutil.Config{CommonName: "etcd-server", AltNames: member, Usages: both}},
		{etcdDir, "peer-server-client", peer, certutil.Config{CommonName: "etcd-peer", AltNames: member, Usages: both}},
		{etcdDir, "client", etcd, certutil.Config{CommonName: "etcd-client", Usages: client}},
	}
	for _, leaf := range leaves {
		if err := ensureLeaf(leaf.dir, leaf.name, leaf.ca, leaf.config); err != nil {
			return err
		}
	}
	if err := ensureServiceKey(c.Data.Server("tls", "service.key")); err != nil {
		return err
	}
	for _, name := range []string{"admin", "controller", "scheduler"} {
		config, err := c.kubeconfig(name)
		if err != nil {
			return err
		}
		if err := writeKubeconfig(c.Data.Credential(name+".kubeconfig"), config, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// WriteAdminKubeconfig writes the kubeconfig that users are handed, with K3s's
// names in it: cluster, user and context are all called "default".
func (c Cluster) WriteAdminKubeconfig(path string, mode os.FileMode) error {
	config, err := c.kubeconfig("admin")
	if err != nil {
		return err
	}
	return writeKubeconfig(path, config, mode)
}

func (c Cluster) kubeconfig(identity string) (*clientcmdapi.Config, error) {
	ca, err := os.ReadFile(c.Data.ServerCA())
	if err != nil {
		return nil, err
	}
	cert, err := os.ReadFile(c.Data.Server("tls", "client-"+identity+".crt"))
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(c.Data.Server("tls", "client-"+identity+".key"))
	if err != nil {
		return nil, err
	}
	config := kubeconfig.CreateWithCerts(fmt.Sprintf("https://127.0.0.1:%d", c.APIPort), "default", "default", ca, key, cert)
	config.Contexts = map[string]*clientcmdapi.Context{"default": {Cluster: "default", AuthInfo: "default"}}
	config.CurrentContext = "default"
	return config, nil
}

func writeKubeconfig(path string, config *clientcmdapi.Config, mode os.FileMode) error {
	content, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return layout.WriteFile(path, content, mode)
}

func ensureAuthority(dir, name, commonName string) (*authority, error) {
	if pkiutil.CertOrKeyExist(dir, name) {
		cert, key, err := pkiutil.TryLoadCertAndKeyFromDisk(dir, name)
		if err != nil {
			return nil, fmt.Errorf("CA %s: %w", name, err)
		}
		return &authority{dir, name, cert, key}, nil
	}
	cert, key, err := pkiutil.NewCertificateAuthority(&pkiutil.CertConfig{
		Config:              certutil.Config{CommonName: fmt.Sprintf("%s@%d", commonName, time.Now().Unix())},
		NotAfter:            time.Now().Add(caLifetime),
		EncryptionAlgorithm: kubeadmapi.EncryptionAlgorithmECDSAP256,
	})
	if err != nil {
		return nil, err
	}
	return &authority{dir, name, cert, key}, pkiutil.WriteCertAndKey(dir, name, cert, key)
}

func ensureLeaf(dir, name string, ca *authority, config certutil.Config) error {
	if cert, _, err := pkiutil.TryLoadCertAndKeyFromDisk(dir, name); err == nil && stillRight(cert, ca.cert, config.AltNames) {
		return nil
	}
	cert, key, err := pkiutil.NewCertAndKey(ca.cert, ca.key, &pkiutil.CertConfig{
		Config:              config,
		NotAfter:            time.Now().Add(leafLifetime),
		EncryptionAlgorithm: kubeadmapi.EncryptionAlgorithmECDSAP256,
	})
	if err != nil {
		return fmt.Errorf("certificate %s: %w", name, err)
	}
	return pkiutil.WriteCertAndKey(dir, name, cert, key)
}

// stillRight tells whether a certificate needs no renewal: signed by this CA,
// good for a while, and valid for every name wanted today.
func stillRight(cert, ca *x509.Certificate, names certutil.AltNames) bool {
	if cert.CheckSignatureFrom(ca) != nil || time.Until(cert.NotAfter) < renewBefore {
		return false
	}
	for _, name := range names.DNSNames {
		if cert.VerifyHostname(name) != nil {
			return false
		}
	}
	for _, ip := range names.IPs {
		if cert.VerifyHostname(ip.String()) != nil {
			return false
		}
	}
	return true
}

func ensureServiceKey(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	key, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return err
	}
	return layout.WriteFile(path, key, 0o600)
}
