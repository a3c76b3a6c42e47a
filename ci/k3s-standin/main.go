// Command k3s is orch's stand-in for K3s: the upstream Kubernetes components in
// one binary that speaks K3s's command line and files. README.md says what it
// is, what it is not and where it differs.
//
// main only dispatches: on argv[0] for the components that the binary re-runs
// itself as, and on the first argument for K3s's commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/sirupsen/logrus"
	"k8s.io/component-base/version"

	"orch.dev/k3s-standin/internal/component"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/node"
	"orch.dev/k3s-standin/internal/server"
	"orch.dev/k3s-standin/internal/snapshot"
	"orch.dev/k3s-standin/internal/token"
)

const usage = `orch-k3s-standin: a stand-in for K3s built from upstream Kubernetes. This is NOT K3s.

Usage: k3s COMMAND [OPTIONS]

Commands:
  server    run a server node
  agent     run an agent node
  token     manage join tokens (create, list, delete)
  etcd-snapshot
            manage snapshots of etcd (save, list, delete, prune)
  kubectl   run kubectl
  ctr       run containerd's ctr on the node's own containerd

  --version, -v   print the version
`

func main() {
	name := filepath.Base(os.Args[0])
	args := os.Args[1:]
	if run, ok := component.Lookup(name); ok {
		os.Exit(run())
	}
	switch name {
	case "kubectl", "ctr":
		args = append([]string{name}, args...)
	}
	if err := dispatch(args); err != nil {
		logrus.Fatal(err)
	}
}

func dispatch(args []string) error {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	switch command {
	case "--version", "-v", "version":
		fmt.Printf("orch-k3s-standin version %s (a stand-in for K3s, not K3s)\ngo version %s\n",
			version.Get().GitVersion, runtime.Version())
		return nil
	case "server", "agent":
		cfg, err := config.Load(command, args)
		if errors.Is(err, config.ErrHelp) {
			return nil
		}
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		if command == "agent" {
			return node.RunAgent(ctx, cfg)
		}
		return server.Run(ctx, cfg)
	case "token":
		return token.Command(args)
	case "etcd-snapshot":
		return snapshot.Command(args)
	case "kubectl":
		os.Exit(component.Kubectl(args))
	case "ctr":
		return node.ExecCtr(args)
	case "", "help", "--help", "-h":
		fmt.Print(usage)
		return nil
	}
	return fmt.Errorf("the K3s stand-in has no command %q; run `k3s help` for those it has", command)
}
