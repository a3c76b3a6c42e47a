package component

import (
	"net/http"
	"os"

	"github.com/spf13/cobra"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/cli/globalflag"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"orch.dev/k3s-standin/internal/bootstrap"
	"orch.dev/k3s-standin/internal/layout"
)

// Paths that a joining node reads before it has a credential. The first is
// K3s's own.
const (
	CACertsPath = "/cacerts"
	ClusterPath = "/orch-standin/cluster"
)

// ClusterFileFlag names the file served at ClusterPath, and DataDirFlag where
// what is served at bootstrap.Path is gathered.
const (
	ClusterFileFlag = "standin-cluster-file"
	DataDirFlag     = "standin-data-dir"
)

// runAPIServer is upstream's kube-apiserver with two more public paths on the
// same port, and one for servers that join. Upstream's own command gives no way to wrap the handler chain,
// hence its body is repeated here without what a child process does not need.
func runAPIServer() int {
	opts := options.NewServerRunOptions()
	ctx := genericapiserver.SetupSignalContext()
	var clusterFile, dataDir string
	cmd := &cobra.Command{
		Use:          APIServer,
		SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			rest.SetDefaultWarningHandler(rest.NoWarnings{})
			return opts.GenericServerRunOptions.ComponentGlobalsRegistry.Set()
		},
		RunE: func(*cobra.Command, []string) error {
			if err := logsapi.ValidateAndApply(opts.Logs, nil); err != nil {
				return err
			}
			completed, err := opts.Complete(ctx)
			if err != nil {
				return err
			}
			if errs := completed.Validate(); len(errs) != 0 {
				return utilerrors.NewAggregate(errs)
			}
			config, err := app.NewConfig(completed)
			if err != nil {
				return err
			}
			addJoinPaths(config.Aggregator.GenericConfig, opts.Authentication.ClientCert.ClientCA, clusterFile, layout.Data(dataDir))
			completedConfig, err := config.Complete()
			if err != nil {
				return err
			}
			chain, err := app.CreateServerChain(completedConfig)
			if err != nil {
				return err
			}
			prepared, err := chain.PrepareRun()
			if err != nil {
				return err
			}
			return prepared.Run(ctx)
		},
	}
	cmd.SetContext(ctx)
	flagSets := opts.Flags()
	globalflag.AddGlobalFlags(flagSets.FlagSet("global"), cmd.Name(), logs.SkipLoggingConfigurationFlags())
	for _, set := range flagSets.FlagSets {
		cmd.Flags().AddFlagSet(set)
	}
	cmd.Flags().StringVar(&clusterFile, ClusterFileFlag, "", "what joining nodes are told about the cluster, JSON")
	cmd.Flags().StringVar(&dataDir, DataDirFlag, "", "this server's state, for servers that join")
	return cli.Run(cmd)
}

func addJoinPaths(config *genericapiserver.RecommendedConfig, caFile, clusterFile string, data layout.Data) {
	serveBootstrap := bootstrap.Handler(data)
	build := config.BuildHandlerChainFunc
	config.BuildHandlerChainFunc = func(apiHandler http.Handler, c *genericapiserver.Config) http.Handler {
		next := build(apiHandler, c)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodGet && r.URL.Path == CACertsPath:
				serveFile(w, caFile, "text/plain")
			case r.Method == http.MethodGet && r.URL.Path == ClusterPath:
				serveFile(w, clusterFile, "application/json")
			case r.Method == http.MethodGet && r.URL.Path == bootstrap.Path:
				serveBootstrap(w, r)
			default:
				next.ServeHTTP(w, r)
			}
		})
	}
}

func serveFile(w http.ResponseWriter, path, contentType string) {
	content, err := os.ReadFile(path)
	if err != nil {
		http.Error(w, "not available", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(content)
}
