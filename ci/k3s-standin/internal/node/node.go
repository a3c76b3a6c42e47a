// Package node runs what every node has: containerd, the kubelet, kube-proxy
// and the pod network, after joining the node to its server.
package node

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"orch.dev/k3s-standin/internal/clientaccess"
	"orch.dev/k3s-standin/internal/component"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/loadbalancer"
	"orch.dev/k3s-standin/internal/network"
	"orch.dev/k3s-standin/internal/process"
)

// Node is a running node.
type Node struct {
	group process.Group
}

// Servers says where a node finds its API servers.
type Servers struct {
	// Join is asked by a node that has not joined yet.
	Join string
	// API is what the node's components talk to.
	API string
	// Balancer stands behind API, if it is not a server itself.
	Balancer *loadbalancer.Balancer
}

// RunAgent is `k3s agent`: it joins the server in the settings and runs until
// ctx ends.
func RunAgent(ctx context.Context, cfg *config.Config) error {
	servers, err := balance(cfg)
	if err != nil {
		return err
	}
	if servers.Balancer != nil {
		defer servers.Balancer.Stop()
	}
	node, err := Start(ctx, cfg, servers)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer node.Stop()
	NotifyReady()
	<-ctx.Done()
	logrus.Info("stopping; pods keep running")
	return nil
}

// Start joins the server and returns once the node is registered there.
func Start(ctx context.Context, cfg *config.Config, servers Servers) (*Node, error) {
	id, cluster, err := join(ctx, cfg, servers)
	if err != nil {
		return nil, err
	}
	node := &Node{}
	if err := node.start(ctx, cfg, id, cluster, servers.Balancer); err != nil {
		node.Stop()
		return nil, err
	}
	return node, nil
}

func (n *Node) start(ctx context.Context, cfg *config.Config, id identity, cluster Cluster, balancer *loadbalancer.Balancer) error {
	if err := startContainerd(ctx, cfg, &n.group); err != nil {
		return err
	}
	if err := importImages(ctx, cfg.DataDir); err != nil {
		return fmt.Errorf("failed to import images: %w", err)
	}
	if cfg.PauseImage == "" {
		warnMissingImages(ctx, PauseImage)
	}
	cidrs := network.CIDRs{Pods: cluster.ClusterCIDR, Services: cluster.ServiceCIDR}
	if err := network.Prepare(cidrs); err != nil {
		return err
	}
	kubelet, err := kubeletSpec(cfg, id, cluster)
	if err != nil {
		return fmt.Errorf("failed to configure the kubelet: %w", err)
	}
	n.group.Start(kubelet)
	client, err := waitRegistered(ctx, cfg.NodeName, id)
	if err != nil {
		return err
	}
	if err := os.Remove(id.bootstrap()); err != nil && !os.IsNotExist(err) {
		return err
	}
	if balancer != nil {
		go followServers(ctx, client, balancer)
	}
	n.group.Start(kubeProxySpec(cfg, id, cluster))
	go network.Run(ctx, network.Settings{
		Client: client, NodeName: cfg.NodeName, CIDRs: cidrs, ConfigDir: cniConfigDir(cfg),
	})
	return nil
}

// Stop ends the node's processes; containers keep running under their shims.
func (n *Node) Stop() { n.group.Stop() }

// NotifyReady tells systemd that a unit of Type=notify is up.
func NotifyReady() {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		logrus.Warnf("failed to notify systemd: %v", err)
	}
	logrus.Info("the K3s stand-in is up and running")
}

// waitRegistered waits until the server knows this node, and returns a client
// that acts as the node.
func waitRegistered(ctx context.Context, name string, id identity) (kubernetes.Interface, error) {
	told := time.Now()
	for {
		client, err := nodeClient(id)
		if err == nil {
			attempt, cancel := context.WithTimeout(ctx, clientaccess.RequestTimeout)
			_, err = client.CoreV1().Nodes().Get(attempt, name, metav1.GetOptions{})
			cancel()
		}
		if err == nil {
			return client, nil
		}
		if time.Since(told) > 10*time.Second && !apierrors.IsNotFound(err) {
			logrus.Infof("Waiting for the node to register: %v", err)
			told = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func nodeClient(id identity) (kubernetes.Interface, error) {
	if _, err := os.Stat(id.clientCert()); err != nil {
		return nil, err
	}
	restConfig, err := clientcmd.BuildConfigFromFlags("", id.kubeconfig())
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(restConfig)
}

func kubeProxySpec(cfg *config.Config, id identity, cluster Cluster) process.Spec {
	args := []string{
		"--kubeconfig=" + id.kubeconfig(),
		"--hostname-override=" + cfg.NodeName,
		"--proxy-mode=iptables",
		"--cluster-cidr=" + cluster.ClusterCIDR,
		"--healthz-bind-address=127.0.0.1:10256",
		"--metrics-bind-address=127.0.0.1:10249",
		// The host's connection tracking is not a nested node's to change.
		"--conntrack-max-per-core=0",
		"--conntrack-tcp-timeout-established=0s",
		"--conntrack-tcp-timeout-close-wait=0s",
	}
	for _, arg := range cfg.KubeProxyArgs {
		args = append(args, "--"+arg)
	}
	return process.Spec{Name: component.KubeProxy, Args: args}
}
