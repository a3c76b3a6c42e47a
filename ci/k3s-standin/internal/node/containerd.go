package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/process"
	"orch.dev/k3s-standin/internal/registries"
)

// PauseImage holds a pod's namespaces; it comes with the air-gap archive.
const PauseImage = "orch.dev/k3s-standin/pause:1"

const containerdStartTimeout = 60 * time.Second

// cniDirs are where distributions and CNI's own releases put the plugins.
var cniDirs = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

func startContainerd(ctx context.Context, cfg *config.Config, group *process.Group) error {
	path, err := exec.LookPath("containerd")
	if err != nil {
		return fmt.Errorf("the K3s stand-in needs the distribution's containerd and runc packages: %w", err)
	}
	configFile := cfg.DataDir.Agent("etc", "containerd", "config.toml")
	if err := writeContainerdConfig(cfg, configFile); err != nil {
		return fmt.Errorf("failed to configure containerd: %w", err)
	}
	if err := os.MkdirAll(layout.ContainerdState, 0o711); err != nil {
		return err
	}
	group.Start(process.Spec{Name: "containerd", Path: path, Args: []string{"--config", configFile, "--log-level", "warn"}})
	deadline := time.Now().Add(containerdStartTimeout)
	for {
		output, err := ctr(ctx, "version").CombinedOutput()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("containerd did not answer within %s: %s", containerdStartTimeout, strings.TrimSpace(string(output)))
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func writeContainerdConfig(cfg *config.Config, path string) error {
	file, err := registries.Read(cfg.Registries)
	if err != nil {
		return err
	}
	hosts, err := file.Hosts(cfg.NoDefaultEndpoint)
	if err != nil {
		return fmt.Errorf("%s: %w", cfg.Registries, err)
	}
	certs := filepath.Join(filepath.Dir(path), "certs.d")
	if err := os.RemoveAll(certs); err != nil {
		return err
	}
	for host, text := range hosts {
		if err := layout.WriteFile(filepath.Join(certs, host, "hosts.toml"), []byte(text), 0o600); err != nil {
			return err
		}
	}
	cniBin, err := findCNI()
	if err != nil {
		return err
	}
	pause := cfg.PauseImage
	if pause == "" {
		pause = PauseImage
	}
	text := fmt.Sprintf(`# Written by the K3s stand-in at every start.
version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = %q

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  stream_server_address = "127.0.0.1"
  stream_server_port = "10010"
  restrict_oom_score_adj = %s

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = %q
  conf_dir = %q

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = %q

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = %q
%s`, cfg.DataDir.Agent("containerd"), layout.ContainerdState, layout.ContainerdSocket, pause,
		strconv.FormatBool(!mayLowerOOMScore()), cniBin, cniConfigDir(cfg), cfg.Snapshotter, certs, file.AuthTOML())
	return layout.WriteFile(path, []byte(text), 0o600)
}

func findCNI() (string, error) {
	for _, dir := range cniDirs {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("found the CNI plugins in none of %s: install the distribution's containernetworking-plugins", strings.Join(cniDirs, ", "))
}

func cniConfigDir(cfg *config.Config) string { return cfg.DataDir.Agent("etc", "cni", "net.d") }

// mayLowerOOMScore tells whether this process has CAP_SYS_RESOURCE. Without it
// runc cannot give sandboxes the score that Kubernetes wants.
func mayLowerOOMScore() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[unix.CAP_SYS_RESOURCE/32].Effective&(1<<(unix.CAP_SYS_RESOURCE%32)) != 0
}

func ctr(ctx context.Context, args ...string) *exec.Cmd {
	base := []string{"--address", layout.ContainerdSocket, "--namespace", layout.ContainerNamespace}
	return exec.CommandContext(ctx, "ctr", append(base, args...)...)
}

// ExecCtr replaces this process by containerd's ctr, set up for the node's own
// containerd as `k3s ctr` does.
func ExecCtr(args []string) error {
	path, err := findCtr()
	if err != nil {
		return err
	}
	env := os.Environ()
	for name, value := range map[string]string{
		"CONTAINERD_ADDRESS":   layout.ContainerdSocket,
		"CONTAINERD_NAMESPACE": layout.ContainerNamespace,
	} {
		if os.Getenv(name) == "" {
			env = append(env, name+"="+value)
		}
	}
	return syscall.Exec(path, append([]string{"ctr"}, args...), env)
}

// findCtr skips links that lead back to this binary, as K3s's installer makes.
func findCtr() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		path := filepath.Join(dir, "ctr")
		if info, err := os.Stat(path); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			continue
		}
		if target, err := filepath.EvalSymlinks(path); err == nil && target != self {
			return path, nil
		}
	}
	return "", errors.New("found no ctr: install the distribution's containerd package")
}

func warnMissingImages(ctx context.Context, name string) {
	output, err := ctr(ctx, "images", "list", "--quiet", "name=="+name).Output()
	if err == nil && strings.TrimSpace(string(output)) == "" {
		logrus.Warnf("image %s is not there: put the air-gap archive into agent/images", name)
	}
}
