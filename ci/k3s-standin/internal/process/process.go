// Package process keeps child processes running and stops them in order.
package process

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	restartDelay = 2 * time.Second
	stopGrace    = 20 * time.Second
)

// Spec describes a child. An empty Path means this binary itself, which then
// acts as the component called Name.
type Spec struct {
	Name string
	Path string
	Args []string
}

// Group is a set of children; the order in which they were started is the
// reverse of that in which they are stopped.
type Group struct {
	mu       sync.Mutex
	children []*child
}

type child struct {
	spec Spec
	stop chan struct{}
	done chan struct{}
}

// Start starts a child and keeps restarting it until Stop.
func (g *Group) Start(spec Spec) {
	c := &child{spec: spec, stop: make(chan struct{}), done: make(chan struct{})}
	g.mu.Lock()
	g.children = append(g.children, c)
	g.mu.Unlock()
	go c.supervise()
}

// Stop ends the children, the last started first, and waits for each.
func (g *Group) Stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := len(g.children) - 1; i >= 0; i-- {
		close(g.children[i].stop)
		<-g.children[i].done
	}
	g.children = nil
}

func (c *child) supervise() {
	// The kernel delivers the parent-death signal when the thread that forked
	// ends, so this goroutine must keep its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(c.done)
	for {
		stopped := c.run()
		if stopped {
			return
		}
		select {
		case <-c.stop:
			return
		case <-time.After(restartDelay):
		}
	}
}

// run runs the child once and tells whether it ended because of Stop.
func (c *child) run() bool {
	log := logrus.WithField("component", c.spec.Name)
	output := &prefixWriter{prefix: "[" + c.spec.Name + "] "}
	cmd, err := c.spec.command()
	if err != nil {
		log.Errorf("failed to start: %v", err)
		return false
	}
	cmd.Stdout, cmd.Stderr = output, output
	// Shims inherit the output pipe and outlive containerd: do not wait for it.
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	log.Info("starting")
	if err := cmd.Start(); err != nil {
		log.Errorf("failed to start: %v", err)
		return false
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case err := <-exited:
		log.Warnf("ended by itself (%v), restarting in %s", err, restartDelay)
		return false
	case <-c.stop:
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(stopGrace):
		log.Warnf("did not stop within %s, killing it", stopGrace)
		_ = cmd.Process.Kill()
		<-exited
	}
	return true
}

func (s Spec) command() (*exec.Cmd, error) {
	path := s.Path
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		path = self
	}
	cmd := exec.Command(path, s.Args...)
	cmd.Args[0] = s.Name
	cmd.Env = environment()
	return cmd, nil
}

// Run runs a component of this binary to its end and returns what it printed.
func Run(ctx context.Context, name string, args ...string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Args[0] = name
	cmd.Env = environment()
	output, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(output)), err
}

// environment keeps secrets and systemd's notification socket, which is the
// supervisor's alone, from the children.
func environment() []string {
	var kept []string
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "K3S_") && !strings.HasPrefix(variable, "NOTIFY_SOCKET=") {
			kept = append(kept, variable)
		}
	}
	return kept
}
