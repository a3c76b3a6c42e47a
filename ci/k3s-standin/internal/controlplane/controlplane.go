// Package controlplane runs etcd, kube-apiserver, kube-controller-manager and
// kube-scheduler and tells when the API is ready.
package controlplane

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"orch.dev/k3s-standin/internal/component"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/datastore"
	"orch.dev/k3s-standin/internal/process"
)

const poll = 250 * time.Millisecond

// ControlPlane is a running control plane.
type ControlPlane struct {
	// Client acts as the cluster's administrator.
	Client kubernetes.Interface
	group  process.Group
}

// Start brings the control plane up and returns once the API answers.
func Start(ctx context.Context, cfg *config.Config, store *datastore.Store) (*ControlPlane, error) {
	restConfig, err := clientcmd.BuildConfigFromFlags("", cfg.DataDir.Credential("admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(restConfig)
	if err != nil {
		return nil, err
	}
	cp := &ControlPlane{Client: client}
	if err := StartEtcd(ctx, &cp.group, store); err != nil {
		cp.Stop()
		return nil, err
	}
	cp.group.Start(process.Spec{Name: component.APIServer, Args: apiServerArgs(cfg)})
	if err := waitFor(ctx, "the API server", cp.Ready); err != nil {
		cp.Stop()
		return nil, err
	}
	cp.group.Start(process.Spec{Name: component.ControllerManager, Args: controllerManagerArgs(cfg, store.Managed)})
	cp.group.Start(process.Spec{Name: component.Scheduler, Args: schedulerArgs(cfg, store.Managed)})
	return cp, nil
}

// StartEtcd starts etcd alone and returns once it can be used.
func StartEtcd(ctx context.Context, group *process.Group, store *datastore.Store) error {
	group.Start(process.Spec{Name: component.Etcd, Args: store.Args()})
	return waitFor(ctx, "etcd", store.Ready)
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
		"--etcd-servers=https://" + datastore.ClientAddress,
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
		// The kubernetes service leads to every server that is there.
		"--endpoint-reconciler-type=lease",
		// Without it, other nodes' watches hold up a stop for a minute.
		"--shutdown-send-retry-after=true",
		"--" + component.ClusterFileFlag + "=" + cfg.DataDir.Server("cluster.json"),
		"--" + component.DataDirFlag + "=" + string(cfg.DataDir),
	}, cfg.APIServerArgs)
}

func controllerManagerArgs(cfg *config.Config, elect bool) []string {
	kubeconfig := cfg.DataDir.Credential("controller.kubeconfig")
	pki := func(name string) string { return cfg.DataDir.Server("tls", name) }
	return withUserArgs([]string{
		"--bind-address=127.0.0.1",
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--leader-elect=" + strconv.FormatBool(elect),
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

func schedulerArgs(cfg *config.Config, elect bool) []string {
	kubeconfig := cfg.DataDir.Credential("scheduler.kubeconfig")
	return withUserArgs([]string{
		"--bind-address=127.0.0.1",
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--leader-elect=" + strconv.FormatBool(elect),
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
