package node

import (
	"encoding/json"
	"net"
	"os"
	"strings"

	"github.com/sirupsen/logrus"

	"orch.dev/k3s-standin/internal/component"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/process"
)

// Label marks every node of a stand-in cluster, so that it is never taken for
// one that runs K3s.
const Label = "orch.dev/k3s-standin=true"

func kubeletSpec(cfg *config.Config, id identity, cluster Cluster) (process.Spec, error) {
	resolv, err := podResolvConf(cfg)
	if err != nil {
		return process.Spec{}, err
	}
	manifests := cfg.DataDir.Agent("pod-manifests")
	if err := os.MkdirAll(manifests, 0o700); err != nil {
		return process.Spec{}, err
	}
	settings := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": id.ca()},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"cgroupDriver":             "cgroupfs",
		"clusterDNS":               []string{cluster.ClusterDNS},
		"clusterDomain":            cluster.ClusterDomain,
		"containerRuntimeEndpoint": "unix://" + layout.ContainerdSocket,
		// K3s's thresholds.
		"evictionHard":           map[string]string{"imagefs.available": "5%", "nodefs.available": "5%"},
		"evictionMinimumReclaim": map[string]string{"imagefs.available": "10%", "nodefs.available": "10%"},
		"failSwapOn":             false,
		"protectKernelDefaults":  cfg.ProtectKernel,
		"resolvConf":             resolv,
		"rotateCertificates":     true,
		"serverTLSBootstrap":     true,
		"staticPodPath":          manifests,
	}
	// JSON is YAML.
	content, err := json.MarshalIndent(settings, "", "  ")
	if err != nil {
		return process.Spec{}, err
	}
	configFile := cfg.DataDir.Agent("etc", "kubelet.yaml")
	if err := layout.WriteFile(configFile, content, 0o600); err != nil {
		return process.Spec{}, err
	}
	args := []string{
		"--config=" + configFile,
		"--kubeconfig=" + id.kubeconfig(),
		"--cert-dir=" + id.pki(),
		"--root-dir=" + layout.KubeletRoot,
		"--hostname-override=" + cfg.NodeName,
		"--node-ip=" + cfg.NodeIP,
		"--node-labels=" + strings.Join(append([]string{Label}, cfg.NodeLabels...), ","),
	}
	if len(cfg.NodeTaints) > 0 {
		args = append(args, "--register-with-taints="+strings.Join(cfg.NodeTaints, ","))
	}
	if _, err := os.Stat(id.bootstrap()); err == nil {
		args = append(args, "--bootstrap-kubeconfig="+id.bootstrap())
	}
	for _, arg := range cfg.KubeletArgs {
		args = append(args, "--"+arg)
	}
	return process.Spec{Name: component.Kubelet, Args: args}, nil
}

// podResolvConf picks the resolv.conf that pods get. A name server on the
// node's loopback is of no use to a pod, so K3s then falls back to a public
// one; so does the stand-in.
func podResolvConf(cfg *config.Config) (string, error) {
	if cfg.ResolvConf != "" {
		return cfg.ResolvConf, nil
	}
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		if content, err := os.ReadFile(path); err == nil && usableByPods(string(content)) {
			return path, nil
		}
	}
	logrus.Warn("Host resolv.conf includes loopback nameservers only - setting the pods' nameserver to 8.8.8.8")
	path := cfg.DataDir.Agent("etc", "resolv.conf")
	return path, layout.WriteFile(path, []byte("nameserver 8.8.8.8\n"), 0o644)
}

func usableByPods(resolv string) bool {
	servers := 0
	for _, line := range strings.Split(resolv, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		ip := net.ParseIP(fields[1])
		if ip == nil || !ip.IsGlobalUnicast() {
			return false
		}
		servers++
	}
	return servers > 0
}
