// Package controlplane runs etcd, kube-apiserver, kube-controller-manager and
// kube-scheduler and tells when the API is ready.
package controlplane

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	certutil "k8s.io/client-go/util/cert"

	"orch.dev/k3s-standin/internal/component"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/process"
)

const (
	etcdClient = "127.0.0.1:2379"
	etcdPeer   = "127.0.0.1:2380"
	poll       = 250 * time.Millisecond
)

// ControlPlane is a running control plane.
type ControlPlane struct {
	// Client acts as the cluster's administrator.
	Client kubernetes.Interface
	group  process.Group
}

// Start brings the control plane up and returns once the API answers.
func Start(ctx context.Context, cfg *config.Config) (*ControlPlane, error) {
	restConfig, err := clientcmd.BuildConfigFromFlags("", cfg.DataDir.Credential("admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir.Server("db", "etcd"), 0o700); err != nil {
		return nil, err
	}
	cp := &ControlPlane{Client: client}
	cp.group.Start(process.Spec{Name: component.Etcd, Args: etcdArgs(cfg)})
	if err := waitFor(ctx, "etcd", func(context.Context) error { return dialEtcd(cfg.DataDir) }); err != nil {
		cp.Stop()
		return nil, err
	}
	cp.group.Start(process.Spec{Name: component.APIServer, Args: apiServerArgs(cfg)})
	if err := waitFor(ctx, "the API server", cp.Ready); err != nil {
		cp.Stop()
		return nil, err
	}
	cp.group.Start(process.Spec{Name: component.ControllerManager, Args: controllerManagerArgs(cfg)})
	cp.group.Start(process.Spec{Name: component.Scheduler, Args: schedulerArgs(cfg)})
	return cp, nil
}

// Ready is nil when the API server says that it is ready.
func (cp *ControlPlane) Ready(ctx context.Context) error {
	return cp.Client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// Stop ends the control plane's processes.
func (cp *ControlPlane) Stop() { cp.group.Stop() }

func waitFor(ctx context.Context, what string, check func(context.Context) error) error {
	for started, told := time.Now(), time.Now(); ; {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := check(attempt)
		cancel()
		if err == nil {
			logrus.Infof("%s is ready after %s", what, time.Since(started).Round(time.Millisecond))
			return nil
		}
		if time.Since(told) > 10*time.Second {
			logrus.Infof("Waiting for %s: %v", what, err)
			told = time.Now()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stopped while waiting for %s: %w", what, err)
		case <-time.After(poll):
		}
	}
}

func dialEtcd(data layout.Data) error {
	pair, err := tls.LoadX509KeyPair(data.Server("tls", "etcd", "client.crt"), data.Server("tls", "etcd", "client.key"))
	if err != nil {
		return err
	}
	roots, err := certutil.NewPool(data.Server("tls", "etcd", "server-ca.crt"))
	if err != nil {
		return err
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", etcdClient,
		&tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots})
	if err != nil {
		return err
	}
	return conn.Close()
}

func etcdArgs(cfg *config.Config) []string {
	pki := func(name string) string { return cfg.DataDir.Server("tls", "etcd", name) }
	return withUserArgs([]string{
		"--name=default",
		"--data-dir=" + cfg.DataDir.Server("db", "etcd"),
		"--listen-client-urls=https://" + etcdClient,
		"--advertise-client-urls=https://" + etcdClient,
		"--listen-peer-urls=https://" + etcdPeer,
		"--initial-advertise-peer-urls=https://" + etcdPeer,
		"--initial-cluster=default=https://" + etcdPeer,
		"--client-cert-auth",
		"--cert-file=" + pki("server-client.crt"),
		"--key-file=" + pki("server-client.key"),
		"--trusted-ca-file=" + pki("server-ca.crt"),
		"--peer-client-cert-auth",
		"--peer-cert-file=" + pki("server-client.crt"),
		"--peer-key-file=" + pki("server-client.key"),
		"--peer-trusted-ca-file=" + pki("server-ca.crt"),
		"--logger=zap",
		"--log-level=warn",
	}, cfg.EtcdArgs)
}

func apiServerArgs(cfg *config.Config) []string {
	pki := func(name ...string) string { return cfg.DataDir.Server(append([]string{"tls"}, name...)...) }
	return withUserArgs([]string{
		"--bind-address=" + cfg.BindAddress,
		"--secure-port=" + strconv.Itoa(cfg.HTTPSPort),
		"--advertise-address=" + cfg.AdvertiseAddress,
		"--allow-privileged=true",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--enable-bootstrap-token-auth=true",
		"--token-auth-file=" + cfg.DataDir.Credential("passwd.csv"),
		"--client-ca-file=" + pki("server-ca.crt"),
		"--tls-cert-file=" + pki("serving-kube-apiserver.crt"),
		"--tls-private-key-file=" + pki("serving-kube-apiserver.key"),
		"--etcd-servers=https://" + etcdClient,
		"--etcd-cafile=" + pki("etcd", "server-ca.crt"),
		"--etcd-certfile=" + pki("etcd", "client.crt"),
		"--etcd-keyfile=" + pki("etcd", "client.key"),
		"--kubelet-certificate-authority=" + pki("server-ca.crt"),
		"--kubelet-client-certificate=" + pki("client-kube-apiserver.crt"),
		"--kubelet-client-key=" + pki("client-kube-apiserver.key"),
		"--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
		"--proxy-client-cert-file=" + pki("client-auth-proxy.crt"),
		"--proxy-client-key-file=" + pki("client-auth-proxy.key"),
		"--requestheader-allowed-names=system:auth-proxy",
		"--requestheader-client-ca-file=" + pki("request-header-ca.crt"),
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--service-account-issuer=https://kubernetes.default.svc." + cfg.ClusterDomain,
		"--service-account-key-file=" + pki("service.key"),
		"--service-account-signing-key-file=" + pki("service.key"),
		"--service-cluster-ip-range=" + cfg.ServiceCIDR,
		"--service-node-port-range=" + cfg.NodePortRange,
		"--profiling=false",
		// Without it, other nodes' watches hold up a stop for a minute.
		"--shutdown-send-retry-after=true",
		"--" + component.ClusterFileFlag + "=" + cfg.DataDir.Server("cluster.json"),
	}, cfg.APIServerArgs)
}

func controllerManagerArgs(cfg *config.Config) []string {
	kubeconfig := cfg.DataDir.Credential("controller.kubeconfig")
	pki := func(name string) string { return cfg.DataDir.Server("tls", name) }
	return withUserArgs([]string{
		"--bind-address=127.0.0.1",
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--leader-elect=false",
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + cfg.ClusterCIDR,
		"--service-cluster-ip-range=" + cfg.ServiceCIDR,
		"--cluster-signing-cert-file=" + pki("server-ca.crt"),
		"--cluster-signing-key-file=" + pki("server-ca.key"),
		"--client-ca-file=" + pki("server-ca.crt"),
		"--requestheader-client-ca-file=" + pki("request-header-ca.crt"),
		"--root-ca-file=" + pki("server-ca.crt"),
		"--service-account-private-key-file=" + pki("service.key"),
		"--use-service-account-credentials=true",
		"--controllers=*,tokencleaner",
		"--profiling=false",
	}, cfg.ControllerArgs)
}

func schedulerArgs(cfg *config.Config) []string {
	kubeconfig := cfg.DataDir.Credential("scheduler.kubeconfig")
	return withUserArgs([]string{
		"--bind-address=127.0.0.1",
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--leader-elect=false",
		"--profiling=false",
	}, cfg.SchedulerArgs)
}

// withUserArgs adds the user's `option=value` pairs last, where they win.
func withUserArgs(args, user []string) []string {
	for _, arg := range user {
		args = append(args, "--"+arg)
	}
	return args
}
