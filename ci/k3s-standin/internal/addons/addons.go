// Package addons deploys what lies in server/manifests: the bundled parts,
// which it writes there itself, and whatever the user adds.
package addons

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/sirupsen/logrus"

	"orch.dev/k3s-standin/internal/component"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/process"
	"orch.dev/k3s-standin/internal/token"
)

const scanEvery = 3 * time.Second

// optional are the bundled parts that `disable` can switch off.
var optional = []string{"coredns", "metrics-server"}

//go:embed manifests/*.yaml
var bundled embed.FS

// Deployer applies manifests with the administrator's credentials.
type Deployer struct {
	dir        string
	kubeconfig string
	cache      string
	applied    map[string][sha256.Size]byte
	disabled   []string
}

// New writes the bundled manifests. A part that is disabled is not written, and
// what it deployed earlier is removed when Run starts, as K3s does.
func New(cfg *config.Config) (*Deployer, error) {
	d := &Deployer{
		dir:        cfg.DataDir.Server("manifests"),
		kubeconfig: cfg.DataDir.Credential("admin.kubeconfig"),
		cache:      cfg.DataDir.Server("kubectl-cache"),
		applied:    map[string][sha256.Size]byte{},
	}
	files, err := bundled.ReadDir("manifests")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		content, err := render(file.Name(), cfg)
		if err != nil {
			return nil, err
		}
		path := filepath.Join(d.dir, file.Name())
		if part := strings.TrimSuffix(file.Name(), ".yaml"); cfg.Disabled(part) && isOptional(part) {
			if _, err := os.Stat(path); err == nil {
				d.disabled = append(d.disabled, path)
			}
			continue
		}
		if err := layout.WriteFile(path, content, 0o600); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func render(name string, cfg *config.Config) ([]byte, error) {
	parsed, err := template.ParseFS(bundled, "manifests/"+name)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = parsed.Execute(&out, map[string]string{
		"BootstrapGroup": token.BootstrapGroup,
		"ClusterDNS":     cfg.ClusterDNS,
		"ClusterDomain":  cfg.ClusterDomain,
	})
	return out.Bytes(), err
}

func isOptional(part string) bool {
	for _, name := range optional {
		if name == part {
			return true
		}
	}
	return false
}

// ApplyRBAC applies what nodes need in order to join, and fails if it cannot.
func (d *Deployer) ApplyRBAC(ctx context.Context) error {
	path := filepath.Join(d.dir, "rbac.yaml")
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return d.apply(ctx, path, sha256.Sum256(content))
}

// Run applies every manifest that is new or changed until ctx ends.
func (d *Deployer) Run(ctx context.Context) {
	for {
		d.removeDisabled(ctx)
		for _, path := range d.manifests() {
			content, err := os.ReadFile(path)
			if err != nil {
				logrus.Errorf("failed to read manifest: %v", err)
				continue
			}
			sum := sha256.Sum256(content)
			if d.applied[path] == sum {
				continue
			}
			if err := d.apply(ctx, path, sum); err != nil && ctx.Err() == nil {
				logrus.Errorf("Failed to process config: %v", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(scanEvery):
		}
	}
}

func (d *Deployer) manifests() []string {
	var paths []string
	err := filepath.WalkDir(d.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		ext := filepath.Ext(name)
		if entry.IsDir() || strings.HasPrefix(name, ".") || (ext != ".yaml" && ext != ".yml" && ext != ".json") {
			return nil
		}
		if _, err := os.Stat(path + ".skip"); err == nil {
			return nil
		}
		for _, disabled := range d.disabled {
			if path == disabled {
				return nil
			}
		}
		paths = append(paths, path)
		return nil
	})
	if err != nil {
		logrus.Errorf("failed to list the manifests: %v", err)
	}
	return paths
}

func (d *Deployer) apply(ctx context.Context, path string, sum [sha256.Size]byte) error {
	output, err := d.kubectl(ctx, "apply", "--server-side", "--force-conflicts", "--field-manager=k3s-standin", "-f", path)
	if err != nil {
		return fmt.Errorf("%s: %w: %s", path, err, output)
	}
	d.applied[path] = sum
	logrus.Infof("Applied manifest at %q", path)
	return nil
}

func (d *Deployer) kubectl(ctx context.Context, args ...string) (string, error) {
	return process.Run(ctx, component.KubectlChild, append([]string{"--kubeconfig", d.kubeconfig, "--cache-dir", d.cache}, args...)...)
}

func (d *Deployer) removeDisabled(ctx context.Context) {
	var left []string
	for _, path := range d.disabled {
		output, err := d.kubectl(ctx, "delete", "--ignore-not-found", "--wait=false", "-f", path)
		if err == nil {
			err = os.Remove(path)
		}
		if err != nil {
			logrus.Errorf("failed to remove disabled %s: %v: %s", path, err, output)
			left = append(left, path)
		}
	}
	d.disabled = left
}
