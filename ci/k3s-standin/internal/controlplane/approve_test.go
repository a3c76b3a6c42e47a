package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/url"
	"testing"

	certificates "k8s.io/api/certificates/v1"
	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func request(t *testing.T, change func(*x509.CertificateRequest)) *certificates.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "system:node:agent", Organization: []string{"system:nodes"}},
		DNSNames:    []string{"agent"},
		IPAddresses: []net.IP{net.ParseIP("192.0.2.1")},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return &certificates.CertificateSigningRequest{Spec: certificates.CertificateSigningRequestSpec{
		Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
		SignerName: certificates.KubeletServingSignerName,
		Usages:     []certificates.KeyUsage{certificates.UsageDigitalSignature, certificates.UsageServerAuth},
		Username:   "system:node:agent",
		Groups:     []string{"system:nodes", "system:authenticated"},
	}}
}

func TestANodeGetsACertificateForItsOwnAddressesOnly(t *testing.T) {
	node := &core.Node{ObjectMeta: metav1.ObjectMeta{Name: "agent"}, Status: core.NodeStatus{Addresses: []core.NodeAddress{
		{Type: core.NodeInternalIP, Address: "192.0.2.1"}, {Type: core.NodeHostName, Address: "agent"},
	}}}
	if err := permitted(request(t, nil), node); err != nil {
		t.Errorf("its own addresses: %v", err)
	}
	for name, change := range map[string]func(*x509.CertificateRequest){
		"a foreign address": func(r *x509.CertificateRequest) { r.IPAddresses = append(r.IPAddresses, net.ParseIP("192.0.2.9")) },
		"a foreign name":    func(r *x509.CertificateRequest) { r.DNSNames = append(r.DNSNames, "kubernetes") },
		"another node":      func(r *x509.CertificateRequest) { r.Subject.CommonName = "system:node:master" },
		"another group":     func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"system:masters"} },
		"a URI":             func(r *x509.CertificateRequest) { r.URIs = []*url.URL{{Scheme: "https", Host: "x"}} },
		"no address":        func(r *x509.CertificateRequest) { r.DNSNames, r.IPAddresses = nil, nil },
	} {
		if permitted(request(t, change), node) == nil {
			t.Errorf("%s was permitted", name)
		}
	}
	for name, change := range map[string]func(*certificates.CertificateSigningRequest){
		"a stranger":   func(r *certificates.CertificateSigningRequest) { r.Spec.Username = "system:node:master" },
		"no node":      func(r *certificates.CertificateSigningRequest) { r.Spec.Groups = []string{"system:authenticated"} },
		"client usage": func(r *certificates.CertificateSigningRequest) { r.Spec.Usages = append(r.Spec.Usages, "client auth") },
		"no PEM":       func(r *certificates.CertificateSigningRequest) { r.Spec.Request = []byte("x") },
	} {
		changed := request(t, nil)
		change(changed)
		if permitted(changed, node) == nil {
			t.Errorf("%s was permitted", name)
		}
	}
}
