// Package config reads K3s's settings: command line, then configuration files,
// then environment. It knows names and precedence and nothing of what the
// settings do.
package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
	netutil "k8s.io/apimachinery/pkg/util/net"

	"orch.dev/k3s-standin/internal/layout"
)

// ErrHelp is returned after the usage was printed on request.
var ErrHelp = pflag.ErrHelp

// Config holds the settings of `k3s server` and `k3s agent`.
type Config struct {
	DataDir           layout.Data
	Token             string
	AgentToken        string
	ServerURL         string
	NodeName          string
	NodeIP            string
	BindAddress       string
	AdvertiseAddress  string
	HTTPSPort         int
	TLSSAN            []string
	Kubeconfig        string
	KubeconfigMode    string
	ClusterCIDR       string
	ServiceCIDR       string
	ClusterDNS        string
	ClusterDomain     string
	Disable           []string
	NodeLabels        []string
	NodeTaints        []string
	Registries        string
	NoDefaultEndpoint bool
	ProtectKernel     bool
	ResolvConf        string
	PauseImage        string
	Snapshotter       string
	KubeletArgs       []string
	KubeProxyArgs     []string
	APIServerArgs     []string
	ControllerArgs    []string
	SchedulerArgs     []string
	EtcdArgs          []string
	NodePortRange     string
	// ClusterInit asks for what K3s runs on etcd: a server that others may join.
	ClusterInit bool
	// ClusterReset asks to shrink etcd to this server, from RestorePath if set.
	ClusterReset       bool
	RestorePath        string
	DisableAgent       bool
	DisableAPIServerLB bool
	LBServerPort       int

	configFile, dataDir, tokenFile, agentTokenFile string
	tlsSAN, disable                                []string
}

// ignoredOptions are K3s's options that mean nothing here: the part that they
// configure is not in the stand-in. Given one, it warns and goes on.
var ignoredOptions = []string{
	"flannel-iface", "flannel-backend", "flannel-conf", "node-external-ip", "node-internal-dns", "node-external-dns",
	"egress-selector-mode", "servicelb-namespace", "default-local-storage-path", "log", "vmodule",
	"kube-cloud-controller-manager-arg", "system-default-registry", "image-credential-provider-bin-dir",
	"image-credential-provider-config", "helm-job-image", "secrets-encryption-provider", "vpn-auth-file", "default-runtime",
	"etcd-snapshot-name", "etcd-snapshot-schedule-cron", "etcd-snapshot-retention", "etcd-snapshot-reconcile-interval",
}

var ignoredSwitches = []string{
	"embedded-registry", "disable-network-policy", "disable-cloud-controller", "disable-helm-controller",
	"disable-kube-proxy", "secrets-encryption", "supervisor-metrics", "debug", "alsologtostderr", "selinux",
	"flannel-ipv6-masq", "flannel-external-ip", "nonroot-devices", "prefer-bundled-bin", "with-node-id",
	"etcd-disable-snapshots", "etcd-expose-metrics", "etcd-snapshot-compress",
}

// environment maps K3s's variables to options; they count only where neither
// the command line nor a file says otherwise.
var environment = map[string]string{
	"K3S_TOKEN":             "token",
	"K3S_TOKEN_FILE":        "token-file",
	"K3S_AGENT_TOKEN":       "agent-token",
	"K3S_AGENT_TOKEN_FILE":  "agent-token-file",
	"K3S_URL":               "server",
	"K3S_NODE_NAME":         "node-name",
	"K3S_DATA_DIR":          "data-dir",
	"K3S_KUBECONFIG_OUTPUT": "write-kubeconfig",
	"K3S_KUBECONFIG_MODE":   "write-kubeconfig-mode",
	"K3S_RESOLV_CONF":       "resolv-conf",
	"K3S_CLUSTER_INIT":      "cluster-init",
	"K3S_CLUSTER_RESET":     "cluster-reset",
	"K3S_LB_SERVER_PORT":    "lb-server-port",
}

func (c *Config) flags(role string) *pflag.FlagSet {
	fs := pflag.NewFlagSet("k3s "+role, pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringVarP(&c.configFile, "config", "c", "", "configuration file")
	fs.StringVarP(&c.dataDir, "data-dir", "d", layout.DefaultDataDir, "state directory")
	fs.StringVarP(&c.Token, "token", "t", "", "shared secret or join token")
	fs.StringVar(&c.tokenFile, "token-file", "", "file that holds the token")
	fs.StringVarP(&c.ServerURL, "server", "s", "", "server to join, https://host:port")
	fs.StringVar(&c.NodeName, "node-name", "", "node name (default: the host name)")
	fs.StringVarP(&c.NodeIP, "node-ip", "i", "", "address that the node is reached at")
	fs.StringArrayVar(&c.NodeLabels, "node-label", nil, "label set when the node registers")
	fs.StringArrayVar(&c.NodeTaints, "node-taint", nil, "taint set when the node registers")
	fs.StringVar(&c.Registries, "private-registry", layout.RegistriesFile, "registries.yaml")
	fs.BoolVar(&c.NoDefaultEndpoint, "disable-default-registry-endpoint", false, "never fall back to a mirror's registry itself")
	fs.BoolVar(&c.ProtectKernel, "protect-kernel-defaults", false, "fail if the kernel's settings are not the kubelet's defaults")
	fs.StringVar(&c.ResolvConf, "resolv-conf", "", "resolv.conf for pods")
	fs.StringVar(&c.PauseImage, "pause-image", "", "image that holds a pod's namespaces")
	fs.StringVar(&c.Snapshotter, "snapshotter", "overlayfs", "containerd snapshotter")
	fs.StringArrayVar(&c.KubeletArgs, "kubelet-arg", nil, "option=value for the kubelet")
	fs.StringArrayVar(&c.KubeProxyArgs, "kube-proxy-arg", nil, "option=value for kube-proxy")

	fs.IntVar(&c.LBServerPort, "lb-server-port", 6444, "local port of an agent's load balancer")
	fs.BoolVar(&c.DisableAPIServerLB, "disable-apiserver-lb", false, "an agent talks to the server in its settings only")

	if role == "server" {
		fs.BoolVar(&c.ClusterInit, "cluster-init", false, "start a cluster that other servers may join")
		fs.BoolVar(&c.ClusterReset, "cluster-reset", false, "make this server the only member of its cluster, and exit")
		fs.StringVar(&c.RestorePath, "cluster-reset-restore-path", "", "snapshot that cluster-reset restores")
		fs.BoolVar(&c.DisableAgent, "disable-agent", false, "run the control plane only")
		fs.String("etcd-snapshot-dir", "", "where `k3s etcd-snapshot` keeps its files")
		fs.StringVar(&c.AgentToken, "agent-token", "", "shared secret for agents only")
		fs.StringVar(&c.agentTokenFile, "agent-token-file", "", "file that holds the agent token")
		fs.StringVar(&c.BindAddress, "bind-address", "0.0.0.0", "address the API listens on")
		fs.StringVar(&c.AdvertiseAddress, "advertise-address", "", "address the API is advertised at (default: node-ip)")
		fs.IntVar(&c.HTTPSPort, "https-listen-port", 6443, "port of the API")
		fs.StringArrayVar(&c.tlsSAN, "tls-san", nil, "additional name or address in the API's certificate")
		fs.StringVarP(&c.Kubeconfig, "write-kubeconfig", "o", layout.AdminKubeconfig, "where to write the admin kubeconfig")
		fs.StringVar(&c.KubeconfigMode, "write-kubeconfig-mode", "0600", "mode of the admin kubeconfig")
		fs.StringVar(&c.ClusterCIDR, "cluster-cidr", "10.42.0.0/16", "addresses of pods")
		fs.StringVar(&c.ServiceCIDR, "service-cidr", "10.43.0.0/16", "addresses of services")
		fs.StringVar(&c.NodePortRange, "service-node-port-range", "30000-32767", "ports of NodePort services")
		fs.StringVar(&c.ClusterDNS, "cluster-dns", "", "address of the DNS service (default: the tenth of service-cidr)")
		fs.StringVar(&c.ClusterDomain, "cluster-domain", "cluster.local", "DNS domain")
		fs.StringArrayVar(&c.disable, "disable", nil, "bundled part not to deploy")
		fs.StringArrayVar(&c.APIServerArgs, "kube-apiserver-arg", nil, "option=value for kube-apiserver")
		fs.StringArrayVar(&c.ControllerArgs, "kube-controller-manager-arg", nil, "option=value for kube-controller-manager")
		fs.StringArrayVar(&c.SchedulerArgs, "kube-scheduler-arg", nil, "option=value for kube-scheduler")
		fs.StringArrayVar(&c.EtcdArgs, "etcd-arg", nil, "option=value for etcd")
	}

	for _, name := range ignoredOptions {
		fs.StringArray(name, nil, "accepted, without effect")
	}
	for _, name := range ignoredSwitches {
		fs.Bool(name, false, "accepted, without effect")
	}
	return fs
}

// Load reads the settings of a role from args, the configuration files and the
// environment, and resolves what has a default that depends on the host.
func Load(role string, args []string) (*Config, error) {
	c := &Config{}
	fs := c.flags(role)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("k3s %s takes options only, got %q", role, fs.Arg(0))
	}
	if err := c.applyFiles(fs, true); err != nil {
		return nil, err
	}
	if err := applyEnvironment(fs); err != nil {
		return nil, err
	}
	for _, name := range append(append([]string{}, ignoredOptions...), ignoredSwitches...) {
		if fs.Changed(name) {
			logrus.Warnf("option %s is accepted for K3s's sake and has no effect in the stand-in", name)
		}
	}
	return c, c.resolve(role)
}

func applyEnvironment(fs *pflag.FlagSet) error {
	for variable, option := range environment {
		if value := os.Getenv(variable); value != "" && fs.Lookup(option) != nil && !fs.Changed(option) {
			if err := fs.Set(option, value); err != nil {
				return fmt.Errorf("%s: %w", variable, err)
			}
		}
	}
	return nil
}

// applyFiles warns of unknown keys if all of them are this command's to know.
func (c *Config) applyFiles(fs *pflag.FlagSet, all bool) error {
	path := c.configFile
	if path == "" {
		path = os.Getenv("K3S_CONFIG_FILE")
	}
	if path == "" {
		path = layout.ConfigFile
	}
	settings, err := readFiles(path)
	if err != nil {
		return fmt.Errorf("failed to read the configuration: %w", err)
	}
	onCommandLine := map[string]bool{}
	fs.Visit(func(flag *pflag.Flag) { onCommandLine[flag.Name] = true })
	for _, s := range settings {
		flag := fs.Lookup(s.key)
		if flag == nil && !all {
			continue
		}
		if flag == nil {
			logrus.Warnf("Unknown flag --%s found in %s, skipping", s.key, path)
			continue
		}
		if onCommandLine[s.key] {
			continue
		}
		values := s.values
		if flag.Value.Type() == "string" && len(values) > 1 {
			values = []string{strings.Join(values, ",")}
		}
		for _, value := range values {
			if err := fs.Set(s.key, value); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return nil
}

func (c *Config) resolve(role string) error {
	var err error
	c.DataDir = layout.Data(c.dataDir)
	if c.Token, err = secret(c.Token, c.tokenFile); err != nil {
		return err
	}
	if c.AgentToken, err = secret(c.AgentToken, c.agentTokenFile); err != nil {
		return err
	}
	if c.NodeName == "" {
		if c.NodeName, err = os.Hostname(); err != nil {
			return err
		}
	}
	c.NodeName = strings.ToLower(c.NodeName)
	c.NodeIP, _, _ = strings.Cut(c.NodeIP, ",")
	if c.NodeIP == "" {
		address, err := netutil.ChooseHostInterface()
		if err != nil {
			return fmt.Errorf("found no address for this node, set node-ip: %w", err)
		}
		c.NodeIP = address.String()
	}
	if net.ParseIP(c.NodeIP) == nil {
		return fmt.Errorf("node-ip %q is not an IP address", c.NodeIP)
	}
	if role == "agent" {
		if c.ServerURL == "" {
			return fmt.Errorf("server is required: set --server, `server` in %s or K3S_URL", layout.ConfigFile)
		}
		return nil
	}
	if c.ClusterReset && c.ServerURL != "" {
		return errors.New("cannot perform cluster-reset while server URL is set - remove server from configuration before resetting")
	}
	if c.RestorePath != "" && !c.ClusterReset {
		return errors.New("cluster-reset-restore-path has no meaning without cluster-reset")
	}
	c.TLSSAN = splitAll(c.tlsSAN)
	c.Disable = splitAll(c.disable)
	if c.AdvertiseAddress == "" {
		c.AdvertiseAddress = c.NodeIP
	}
	if c.ClusterDNS == "" {
		if c.ClusterDNS, err = nthAddress(c.ServiceCIDR, 10); err != nil {
			return fmt.Errorf("service-cidr: %w", err)
		}
	}
	if _, _, err := net.ParseCIDR(c.ClusterCIDR); err != nil {
		return fmt.Errorf("cluster-cidr: %w", err)
	}
	return nil
}

// Disabled tells whether a bundled part was switched off with `disable`.
func (c *Config) Disabled(part string) bool {
	for _, name := range c.Disable {
		if name == part {
			return true
		}
	}
	return false
}

func secret(value, file string) (string, error) {
	if value != "" || file == "" {
		return value, nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("failed to read the token: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}

func splitAll(values []string) []string {
	var parts []string
	for _, value := range values {
		for _, part := range strings.Split(value, ",") {
			if part = strings.TrimSpace(part); part != "" {
				parts = append(parts, part)
			}
		}
	}
	return parts
}

// nthAddress counts from the network's own address.
func nthAddress(cidr string, n byte) (string, error) {
	_, network, err := net.ParseCIDR(cidr)
	if err != nil {
		return "", err
	}
	address := append(net.IP{}, network.IP...)
	address[len(address)-1] += n
	return address.String(), nil
}

// FirstServiceIP is the address of the `kubernetes` service.
func (c *Config) FirstServiceIP() (string, error) { return nthAddress(c.ServiceCIDR, 1) }
