package config

import (
	"os"
	"strings"

	"github.com/spf13/pflag"

	"orch.dev/k3s-standin/internal/layout"
)

// Snapshot holds the settings of `k3s etcd-snapshot`.
type Snapshot struct {
	DataDir   layout.Data
	NodeName  string
	Name      string
	Dir       string
	Output    string
	Retention int
}

// LoadSnapshot reads the settings of `k3s etcd-snapshot` and returns what is
// left of args. The configuration files are the server's own.
func LoadSnapshot(args []string) (*Snapshot, []string, error) {
	s := &Snapshot{}
	var file, dataDir string
	fs := pflag.NewFlagSet("k3s etcd-snapshot", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if long, ok := map[string]string{
			"dir": "etcd-snapshot-dir", "snapshot-retention": "etcd-snapshot-retention",
		}[name]; ok {
			name = long
		}
		return pflag.NormalizedName(name)
	})
	fs.StringVarP(&file, "config", "c", "", "configuration file")
	fs.StringVarP(&dataDir, "data-dir", "d", layout.DefaultDataDir, "state directory")
	fs.StringVar(&s.NodeName, "node-name", "", "node name (default: the host name)")
	fs.StringVar(&s.Name, "name", "on-demand", "base name of the snapshot")
	fs.StringVar(&s.Dir, "etcd-snapshot-dir", "", "where snapshots are kept (alias: --dir)")
	fs.IntVar(&s.Retention, "etcd-snapshot-retention", 5, "how many snapshots prune leaves (alias: --snapshot-retention)")
	fs.StringVarP(&s.Output, "output", "o", "", "list as json or as a table")
	if err := fs.Parse(args); err != nil {
		return nil, nil, err
	}
	if err := (&Config{configFile: file}).applyFiles(fs, false); err != nil {
		return nil, nil, err
	}
	if err := applyEnvironment(fs); err != nil {
		return nil, nil, err
	}
	s.DataDir = layout.Data(dataDir)
	if s.Dir == "" {
		s.Dir = s.DataDir.Snapshots()
	}
	if s.NodeName == "" {
		var err error
		if s.NodeName, err = os.Hostname(); err != nil {
			return nil, nil, err
		}
	}
	s.NodeName = strings.ToLower(s.NodeName)
	return s, fs.Args(), nil
}
