// Package component holds the upstream programs that the binary can become. A
// child process is this binary again, with the component's name as argv[0].
package component

import (
	"context"
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	"orch.dev/k3s-standin/internal/layout"
)

// Names of the components.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Kubelet           = "kubelet"
	KubeProxy         = "kube-proxy"
)

// KubectlChild is the name under which the stand-in runs kubectl for itself,
// with nothing taken from the user's environment.
const KubectlChild = "standin-kubectl"

var components = map[string]func() int{
	Etcd: func() int {
		etcdmain.Main(os.Args)
		return 0
	},
	APIServer:         runAPIServer,
	ControllerManager: func() int { return cli.Run(controllermanager.NewControllerManagerCommand()) },
	Scheduler:         func() int { return cli.Run(scheduler.NewSchedulerCommand()) },
	Kubelet:           func() int { return cli.Run(kubelet.NewKubeletCommand(context.Background())) },
	KubeProxy:         func() int { return cli.Run(proxy.NewProxyCommand()) },
	KubectlChild:      func() int { return runKubectl(os.Args[1:]) },
}

// Lookup finds a component by the name in argv[0].
func Lookup(name string) (func() int, bool) {
	run, ok := components[name]
	return run, ok
}

// Kubectl runs kubectl in this process, with the node's admin kubeconfig unless
// the user names another one.
func Kubectl(args []string) int {
	if os.Getenv("KUBECONFIG") == "" {
		os.Setenv("KUBECONFIG", layout.AdminKubeconfig)
	}
	return runKubectl(args)
}

func runKubectl(args []string) int {
	os.Args = append([]string{"kubectl"}, args...)
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
	return 0
}
