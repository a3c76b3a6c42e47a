package node

import (
	"context"
	"net"
	"net/url"
	"strconv"

	"github.com/sirupsen/logrus"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"orch.dev/k3s-standin/internal/clientaccess"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/loadbalancer"
)

// balance starts an agent's load balancer, unless the settings want none.
func balance(cfg *config.Config) (Servers, error) {
	base, err := clientaccess.Base(cfg.ServerURL)
	if err != nil {
		return Servers{}, err
	}
	if cfg.DisableAPIServerLB {
		return Servers{Join: base, API: base}, nil
	}
	server, err := url.Parse(base)
	if err != nil {
		return Servers{}, err
	}
	host := server.Host
	if server.Port() == "" {
		host = net.JoinHostPort(server.Hostname(), "443")
	}
	balancer, err := loadbalancer.Start(cfg.DataDir.Agent("etc", "k3s-agent-load-balancer.json"), base, host, cfg.LBServerPort)
	if err != nil {
		return Servers{}, err
	}
	return Servers{Join: base, API: "https://" + balancer.Address(), Balancer: balancer}, nil
}

// followServers keeps the load balancer's servers those behind the `kubernetes`
// service until ctx ends.
func followServers(ctx context.Context, client kubernetes.Interface, balancer *loadbalancer.Balancer) {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithNamespace(metav1.NamespaceDefault),
		informers.WithTweakListOptions(func(options *metav1.ListOptions) {
			options.LabelSelector = discovery.LabelServiceName + "=kubernetes"
		}))
	slices := factory.Discovery().V1().EndpointSlices()
	update := func() {
		list, err := slices.Lister().List(labels.Everything())
		if err != nil {
			logrus.Warnf("failed to list the servers: %v", err)
			return
		}
		balancer.Update(serverAddresses(list))
	}
	_, err := slices.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { update() },
		UpdateFunc: func(any, any) { update() },
		DeleteFunc: func(any) { update() },
	})
	if err != nil {
		logrus.Errorf("failed to watch the servers: %v", err)
		return
	}
	factory.Start(ctx.Done())
}

func serverAddresses(slices []*discovery.EndpointSlice) []string {
	var servers []string
	for _, slice := range slices {
		for _, port := range slice.Ports {
			if port.Port == nil {
				continue
			}
			for _, endpoint := range slice.Endpoints {
				if ready := endpoint.Conditions.Ready; ready != nil && !*ready {
					continue
				}
				for _, address := range endpoint.Addresses {
					servers = append(servers, net.JoinHostPort(address, strconv.Itoa(int(*port.Port))))
				}
			}
		}
	}
	return servers
}
