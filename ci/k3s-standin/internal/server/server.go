// Package server is `k3s server`: a control plane, and a node beside it that
// joins it like any other.
package server

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/sirupsen/logrus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"orch.dev/k3s-standin/internal/addons"
	"orch.dev/k3s-standin/internal/certs"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/controlplane"
	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/network"
	"orch.dev/k3s-standin/internal/node"
	"orch.dev/k3s-standin/internal/token"
)

// roleLabels are K3s's labels of a server; the kubelet may not set them itself.
const roleLabels = `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":"true","node-role.kubernetes.io/master":"true"}}}`

// Run runs a server node until ctx ends.
func Run(ctx context.Context, cfg *config.Config) error {
	err := run(ctx, cfg)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func run(ctx context.Context, cfg *config.Config) error {
	if err := prepare(cfg); err != nil {
		return err
	}
	deployer, err := addons.New(cfg)
	if err != nil {
		return fmt.Errorf("failed to write the bundled manifests: %w", err)
	}
	if err := network.Prepare(network.CIDRs{Pods: cfg.ClusterCIDR, Services: cfg.ServiceCIDR}); err != nil {
		return err
	}
	plane, err := controlplane.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer plane.Stop()
	if err := deployer.ApplyRBAC(ctx); err != nil {
		return err
	}
	go deployer.Run(ctx)
	go plane.ApproveKubeletServing(ctx)

	self, err := node.Start(ctx, cfg, fmt.Sprintf("https://127.0.0.1:%d", cfg.HTTPSPort))
	if err != nil {
		return err
	}
	defer self.Stop()
	if err := labelServer(ctx, plane.Client, cfg.NodeName); err != nil {
		return err
	}
	if err := plane.Ready(ctx); err != nil {
		return err
	}
	node.NotifyReady()
	<-ctx.Done()
	logrus.Info("stopping; pods keep running")
	return nil
}

// prepare writes the server's files. It leaves in cfg.Token the secret that the
// server's own node joins with.
func prepare(cfg *config.Config) error {
	if err := os.MkdirAll(cfg.DataDir.Server(), 0o700); err != nil {
		return err
	}
	serviceIP, err := cfg.FirstServiceIP()
	if err != nil {
		return err
	}
	cluster := certs.Cluster{
		Data: cfg.DataDir, NodeName: cfg.NodeName, Domain: cfg.ClusterDomain, ServiceIP: serviceIP, APIPort: cfg.HTTPSPort,
		Addresses: append([]string{cfg.NodeIP, cfg.AdvertiseAddress}, cfg.TLSSAN...),
	}
	if err := certs.Ensure(cluster); err != nil {
		return fmt.Errorf("failed to prepare certificates: %w", err)
	}
	password, err := token.EnsureServerFiles(cfg.DataDir, cfg.Token, cfg.AgentToken)
	if err != nil {
		return fmt.Errorf("failed to prepare the token: %w", err)
	}
	ca, err := os.ReadFile(cfg.DataDir.ServerCA())
	if err != nil {
		return err
	}
	cfg.Token = token.Format(ca, "server:"+password)

	info, err := json.Marshal(node.Cluster{ClusterCIDR: cfg.ClusterCIDR, ServiceCIDR: cfg.ServiceCIDR, ClusterDNS: cfg.ClusterDNS, ClusterDomain: cfg.ClusterDomain})
	if err != nil {
		return err
	}
	if err := layout.WriteFile(cfg.DataDir.Server("cluster.json"), info, 0o600); err != nil {
		return err
	}
	mode, err := strconv.ParseUint(cfg.KubeconfigMode, 8, 32)
	if err != nil {
		return fmt.Errorf("write-kubeconfig-mode %q is not an octal mode", cfg.KubeconfigMode)
	}
	return cluster.WriteAdminKubeconfig(cfg.Kubeconfig, os.FileMode(mode))
}

func labelServer(ctx context.Context, client kubernetes.Interface, name string) error {
	_, err := client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, []byte(roleLabels), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("failed to label the server's node: %w", err)
	}
	return nil
}
