// Package server is `k3s server`: a control plane, and a node beside it that
// joins it like any other.
package server

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"orch.dev/k3s-standin/internal/addons"
	"orch.dev/k3s-standin/internal/bootstrap"
	"orch.dev/k3s-standin/internal/certs"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/controlplane"
	"orch.dev/k3s-standin/internal/datastore"
	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/network"
	"orch.dev/k3s-standin/internal/node"
	"orch.dev/k3s-standin/internal/token"
)

// Run runs a server node until ctx ends.
func Run(ctx context.Context, cfg *config.Config) error {
	err := run(ctx, cfg)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func run(ctx context.Context, cfg *config.Config) error {
	if cfg.ClusterReset {
		return reset(ctx, cfg)
	}
	members, err := joinServer(ctx, cfg)
	if err != nil {
		return err
	}
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
	store, err := datastore.Open(ctx, cfg, members)
	if err != nil {
		return err
	}
	plane, err := controlplane.Start(ctx, cfg, store)
	if err != nil {
		return err
	}
	defer plane.Stop()
	left := make(chan error, 1)
	if store.Managed {
		if err := keepBootstrap(ctx, cfg, store); err != nil {
			return err
		}
		go func() { left <- store.Watch(ctx, plane.Client) }()
	}
	if err := deployer.ApplyRBAC(ctx); err != nil {
		return err
	}
	go deployer.Run(ctx)
	go plane.ApproveKubeletServing(ctx)

	if !cfg.DisableAgent {
		local := fmt.Sprintf("https://127.0.0.1:%d", cfg.HTTPSPort)
		self, err := node.Start(ctx, cfg, node.Servers{Join: local, API: local})
		if err != nil {
			return err
		}
		defer self.Stop()
		if err := labelServer(ctx, plane.Client, cfg.NodeName, store); err != nil {
			return err
		}
	}
	if err := plane.Ready(ctx); err != nil {
		return err
	}
	node.NotifyReady()
	select {
	case <-ctx.Done():
		logrus.Info("stopping; pods keep running")
		return nil
	case err := <-left:
		return err
	}
}

// keepBootstrap seals what another server would need with the token, and
// forgets a reset: this start was the normal one after it.
func keepBootstrap(ctx context.Context, cfg *config.Config, store *datastore.Store) error {
	own, err := token.Parse(cfg.Token)
	if err != nil {
		return err
	}
	if err := store.SaveBootstrap(ctx, own.Bearer); err != nil {
		return fmt.Errorf("failed to save the bootstrap data: %w", err)
	}
	return datastore.ForgetReset(cfg.DataDir)
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
		Addresses: append([]string{cfg.NodeIP, cfg.AdvertiseAddress}, cfg.TLSSAN...), NodeIP: cfg.NodeIP,
	}
	if err := certs.Ensure(cluster); err != nil {
		return fmt.Errorf("failed to prepare certificates: %w", err)
	}
	if err := bootstrap.WriteSettings(cfg.DataDir, critical(cfg)); err != nil {
		return err
	}
	if err := inheritAgentToken(cfg); err != nil {
		return err
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

// inheritAgentToken takes over the agent token that a server was handed when it
// joined, so that it is valid on all of them.
func inheritAgentToken(cfg *config.Config) error {
	if cfg.AgentToken != "" || cfg.ServerURL == "" {
		return nil
	}
	content, err := os.ReadFile(cfg.DataDir.Server("agent-token"))
	if os.IsNotExist(err) {
		return nil
	}
	cfg.AgentToken = strings.TrimSpace(string(content))
	return err
}

// labelServer gives a server's Node K3s's labels, which the kubelet may not set
// itself, and notes its etcd member.
func labelServer(ctx context.Context, client kubernetes.Interface, name string, store *datastore.Store) error {
	labels := map[string]string{"node-role.kubernetes.io/control-plane": "true", "node-role.kubernetes.io/master": "true"}
	annotations := map[string]string{}
	if store.Managed {
		labels[datastore.RoleLabel] = "true"
		annotations[datastore.NameAnnotation] = store.MemberName()
		annotations[datastore.AddressAnnotation] = store.MemberAddress()
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels, "annotations": annotations}})
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("failed to label the server's node: %w", err)
	}
	return nil
}
