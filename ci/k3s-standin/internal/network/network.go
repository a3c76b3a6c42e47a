// Package network is the pod network of the stand-in: a bridge per node, a
// route to each peer's pods over its node address, and masquerading for what
// leaves the cluster. All nodes must share a link, or their network must route
// pod addresses; K3s's flannel needs neither.
package network

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"orch.dev/k3s-standin/internal/layout"
)

const (
	// routeProtocol marks our routes in the kernel's table; the number is of
	// the range that is free for routing daemons.
	routeProtocol = 0x6f
	resync        = 30 * time.Second
	// unreachable stands for a gateway: pods of no node must not be looked for
	// beyond the default route.
	unreachable = "unreachable"
)

// CIDRs are the cluster's address ranges.
type CIDRs struct {
	Pods, Services string
}

// Settings says which node of which cluster this is.
type Settings struct {
	Client    kubernetes.Interface
	NodeName  string
	CIDRs     CIDRs
	ConfigDir string
}

// Prepare sets what the kernel must do before there are pods: forward, show
// bridged packets to iptables, without which a pod cannot reach a service that
// answers from its own node, and keep the cluster's addresses in the cluster.
func Prepare(c CIDRs) error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("failed to switch on IP forwarding: %w", err)
	}
	if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0o644); err != nil {
		logrus.Warnf("bridged packets bypass iptables, pods may not reach services on their own node (is br_netfilter loaded?): %v", err)
	}
	return ensureRules(c)
}

// Run keeps the node's network in step with the cluster's nodes until ctx ends.
func Run(ctx context.Context, s Settings) {
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	factory := informers.NewSharedInformerFactory(s.Client, 0)
	nodes := factory.Core().V1().Nodes()
	_, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { poke() },
		UpdateFunc: func(any, any) { poke() },
		DeleteFunc: func(any) { poke() },
	})
	if err != nil {
		logrus.Errorf("failed to watch the nodes: %v", err)
		return
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), nodes.Informer().HasSynced) {
		return
	}
	poke()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(resync):
		}
		list, err := nodes.Lister().List(labels.Everything())
		if err == nil {
			err = s.reconcile(list)
		}
		if err != nil {
			logrus.Errorf("failed to set up the pod network: %v", err)
		}
	}
}

func (s Settings) reconcile(nodes []*core.Node) error {
	wanted, own := plan(s.NodeName, nodes)
	if own == "" {
		return nil
	}
	wanted[s.CIDRs.Pods] = unreachable
	if err := ensureRules(s.CIDRs); err != nil {
		return err
	}
	if err := writeCNI(s.ConfigDir, own); err != nil {
		return err
	}
	return applyRoutes(wanted)
}

// plan returns the gateway of each peer's pod network, and the node's own pod
// network, empty until the cluster has given it one.
func plan(self string, nodes []*core.Node) (routes map[string]string, own string) {
	routes = map[string]string{}
	for _, node := range nodes {
		if node.Spec.PodCIDR == "" {
			continue
		}
		if node.Name == self {
			own = node.Spec.PodCIDR
			continue
		}
		for _, address := range node.Status.Addresses {
			if address.Type == core.NodeInternalIP {
				routes[node.Spec.PodCIDR] = address.Address
				break
			}
		}
	}
	return routes, own
}

func applyRoutes(wanted map[string]string) error {
	current, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("failed to list routes: %w", err)
	}
	for i := range current {
		destination := current[i].Dst.String()
		if gateway, ok := wanted[destination]; ok && gateway == gatewayOf(current[i]) {
			delete(wanted, destination)
			continue
		}
		if err := netlink.RouteDel(&current[i]); err != nil {
			return fmt.Errorf("failed to remove the route to %s: %w", destination, err)
		}
	}
	for destination, gateway := range wanted {
		_, network, err := net.ParseCIDR(destination)
		if err != nil {
			return err
		}
		route := &netlink.Route{Dst: network, Protocol: routeProtocol}
		if gateway == unreachable {
			route.Type = unix.RTN_UNREACHABLE
		} else {
			route.Gw = net.ParseIP(gateway)
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("failed to route %s via %s: %w", destination, gateway, err)
		}
		logrus.Infof("route to the pods in %s: %s", destination, gateway)
	}
	return nil
}

func gatewayOf(route netlink.Route) string {
	if route.Type == unix.RTN_UNREACHABLE {
		return unreachable
	}
	return route.Gw.String()
}

func writeCNI(dir, subnet string) error {
	content, err := json.MarshalIndent(map[string]any{
		"cniVersion": "0.4.0",
		"name":       "cbr0",
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				"ipam": map[string]any{
					"type":   "host-local",
					"ranges": [][]map[string]string{{{"subnet": subnet}}},
					"routes": []map[string]string{{"dst": "0.0.0.0/0"}},
					// A reboot ends every pod: its leases go with /run.
					"dataDir": "/run/k3s/cni",
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "10-standin.conflist")
	if current, err := os.ReadFile(path); err == nil && string(current) == string(content) {
		return nil
	}
	return layout.WriteFile(path, content, 0o600)
}
