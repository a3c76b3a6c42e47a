package node

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sirupsen/logrus"
	authentication "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	certutil "k8s.io/client-go/util/cert"

	"orch.dev/k3s-standin/internal/clientaccess"
	"orch.dev/k3s-standin/internal/component"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/token"
)

const retryDelay = 3 * time.Second

// Cluster is what a node must know of its cluster; the server publishes it.
type Cluster struct {
	ClusterCIDR   string `json:"clusterCIDR"`
	ServiceCIDR   string `json:"serviceCIDR"`
	ClusterDNS    string `json:"clusterDNS"`
	ClusterDomain string `json:"clusterDomain"`
}

// identity is where a node keeps what lets it talk to its servers.
type identity struct {
	data layout.Data
	// server is the one that the settings name: it is asked to join.
	server string
	// api is what a node that has joined talks to.
	api string
}

func (i identity) ca() string         { return i.data.Agent("server-ca.crt") }
func (i identity) cluster() string    { return i.data.Agent("cluster.json") }
func (i identity) pki() string        { return i.data.Agent("pki") }
func (i identity) clientCert() string { return i.data.Agent("pki", "kubelet-client-current.pem") }
func (i identity) kubeconfig() string { return i.data.Agent("kubelet.kubeconfig") }
func (i identity) bootstrap() string  { return i.data.Agent("bootstrap.kubeconfig") }

// join leaves the node with a verified CA, the cluster's settings, a kubeconfig
// for its components and, if it has no certificate yet, one for asking for it.
// It waits for a server that cannot be reached and fails on one that must not
// be trusted or that rejects the token.
func join(ctx context.Context, cfg *config.Config, servers Servers) (identity, Cluster, error) {
	id := identity{data: cfg.DataDir, api: servers.API}
	var err error
	if id.server, err = clientaccess.Base(servers.Join); err != nil {
		return id, Cluster{}, err
	}

	var tok token.Token
	if cfg.Token != "" {
		if tok, err = token.Parse(cfg.Token); err != nil {
			return id, Cluster{}, err
		}
	}
	if err := id.writeKubeconfig(id.kubeconfig(), &clientcmdapi.AuthInfo{ClientCertificate: id.clientCert(), ClientKey: id.clientCert()}); err != nil {
		return id, Cluster{}, err
	}
	if id.knownTo(tok) {
		logrus.Info("this node has joined before: using its own certificate")
		if err := os.Remove(id.bootstrap()); err != nil && !os.IsNotExist(err) {
			return id, Cluster{}, err
		}
		cluster, err := id.recallCluster(ctx)
		return id, cluster, err
	}
	if tok.Bearer == "" {
		return id, Cluster{}, errors.New("token is required: set token-file, token or K3S_TOKEN_FILE")
	}
	cluster, err := id.introduce(ctx, tok)
	return id, cluster, err
}

// knownTo tells whether an earlier join still holds: a certificate that has not
// expired, under the CA that the token names.
func (i identity) knownTo(tok token.Token) bool {
	ca, err := os.ReadFile(i.ca())
	if err != nil || (tok.CAHash != "" && tok.CAHash != token.HashCA(ca)) {
		return false
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	certs, err := certutil.CertsFromFile(i.clientCert())
	if err != nil {
		return false
	}
	_, err = certs[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}

// recallCluster prefers the server's answer but does not need the server, so
// that a node restarts while the server is away.
func (i identity) recallCluster(ctx context.Context) (Cluster, error) {
	cluster, err := i.fetchCluster(ctx, i.api)
	if err == nil {
		return cluster, nil
	}
	logrus.Warnf("using the cluster settings of the last start: %v", err)
	content, err := os.ReadFile(i.cluster())
	if err != nil {
		return cluster, err
	}
	return cluster, json.Unmarshal(content, &cluster)
}

func (i identity) introduce(ctx context.Context, tok token.Token) (Cluster, error) {
	for {
		cluster, err := i.tryIntroduce(ctx, tok)
		if err == nil || errors.Is(err, clientaccess.ErrRefused) || ctx.Err() != nil {
			return cluster, err
		}
		logrus.Errorf("failed to reach %s, retrying: %v", i.server, err)
		select {
		case <-ctx.Done():
			return Cluster{}, ctx.Err()
		case <-time.After(retryDelay):
		}
	}
}

func (i identity) tryIntroduce(ctx context.Context, tok token.Token) (Cluster, error) {
	ca, err := clientaccess.FetchCA(ctx, i.server, tok)
	if err != nil {
		return Cluster{}, err
	}
	if err := layout.WriteFile(i.ca(), ca, 0o644); err != nil {
		return Cluster{}, err
	}
	if err := i.checkToken(ctx, tok); err != nil {
		return Cluster{}, err
	}
	if err := os.RemoveAll(i.pki()); err != nil {
		return Cluster{}, err
	}
	if err := i.writeKubeconfig(i.bootstrap(), &clientcmdapi.AuthInfo{Token: tok.Bearer}); err != nil {
		return Cluster{}, err
	}
	return i.fetchCluster(ctx, i.server)
}

// checkToken asks the server who the bearer is: the kubelet would try a token
// that has expired for ever and say so only in passing.
func (i identity) checkToken(ctx context.Context, tok token.Token) error {
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: i.server, BearerToken: tok.Bearer, Timeout: clientaccess.RequestTimeout,
		TLSClientConfig: rest.TLSClientConfig{CAFile: i.ca()},
	})
	if err != nil {
		return err
	}
	_, err = client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authentication.SelfSubjectReview{}, metav1.CreateOptions{})
	if apierrors.IsUnauthorized(err) {
		return fmt.Errorf("%w: token rejected (401 Unauthorized): it is unknown, deleted or expired; make a new one on the server with `k3s token create`", clientaccess.ErrRefused)
	}
	return err
}

func (i identity) fetchCluster(ctx context.Context, server string) (Cluster, error) {
	var cluster Cluster
	ca, err := os.ReadFile(i.ca())
	if err != nil {
		return cluster, err
	}
	verified := clientaccess.Trusting(ca)
	defer verified.CloseIdleConnections()
	content, err := clientaccess.Get(ctx, verified, server+component.ClusterPath, nil)
	if err != nil {
		return cluster, err
	}
	if err := json.Unmarshal(content, &cluster); err != nil {
		return cluster, fmt.Errorf("%s%s: %w", server, component.ClusterPath, err)
	}
	return cluster, layout.WriteFile(i.cluster(), content, 0o644)
}

func (i identity) writeKubeconfig(path string, user *clientcmdapi.AuthInfo) error {
	content, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"default": {Server: i.api, CertificateAuthority: i.ca()}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"default": user},
		Contexts:       map[string]*clientcmdapi.Context{"default": {Cluster: "default", AuthInfo: "default"}},
		CurrentContext: "default",
	})
	if err != nil {
		return err
	}
	return layout.WriteFile(path, content, 0o600)
}
