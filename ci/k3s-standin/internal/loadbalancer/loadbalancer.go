// Package loadbalancer gives a node one local address for all API servers, as
// K3s's agent does: it passes TCP connections on to a server that answers, and
// remembers the servers in K3s's file, so that a node starts while the server
// that it joined is gone. It knows nothing of what passes through.
package loadbalancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"orch.dev/k3s-standin/internal/layout"
)

const (
	dialTimeout = 3 * time.Second
	// checkEvery is how often a server that carries connections is dialled. A
	// host that vanished resets nothing: its clients would wait for minutes.
	checkEvery   = 5 * time.Second
	failedChecks = 2
)

// state is K3s's file, field by field.
type state struct {
	ServerURL       string
	ServerAddresses []string
}

// Balancer is a running load balancer.
type Balancer struct {
	listener  net.Listener
	file      string
	serverURL string
	fallback  string
	stop      context.CancelFunc

	mu      sync.Mutex
	servers []string
	// preferred is the server that took the last connection.
	preferred string
	open      map[net.Conn]string
}

// Start listens on a local port. serverURL is what the settings name, and
// fallback its host and port: tried when no server that is known answers. The
// servers of an earlier start count only if the settings have not changed.
func Start(file, serverURL, fallback string, port int) (*Balancer, error) {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(port)))
	if err != nil {
		return nil, fmt.Errorf("failed to start the load balancer: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Balancer{
		listener: listener, file: file, serverURL: serverURL, fallback: fallback, stop: cancel,
		servers: []string{fallback}, open: map[net.Conn]string{},
	}
	if known, err := read(file); err != nil {
		logrus.Warnf("the servers of the last start are not known: %v", err)
	} else if known.ServerURL == serverURL && len(known.ServerAddresses) > 0 {
		b.servers = known.ServerAddresses
	}
	if err := b.write(); err != nil {
		b.Stop()
		return nil, err
	}
	logrus.Infof("Running load balancer %s -> %v", b.Address(), b.servers)
	go b.accept()
	go b.check(ctx)
	return b, nil
}

// Address is where it listens.
func (b *Balancer) Address() string { return b.listener.Addr().String() }

// Stop closes the port and every connection.
func (b *Balancer) Stop() {
	b.stop()
	_ = b.listener.Close()
	b.drop(func(string) bool { return true })
}

// Update replaces the servers and ends the connections to those that are gone.
// An empty list is taken for ignorance and changes nothing.
func (b *Balancer) Update(servers []string) {
	if len(servers) == 0 {
		return
	}
	servers = slices.Compact(slices.Sorted(slices.Values(servers)))
	b.mu.Lock()
	changed := !slices.Equal(b.servers, servers)
	b.servers = servers
	b.mu.Unlock()
	if !changed {
		return
	}
	logrus.Infof("Updating load balancer server addresses -> %v", servers)
	if err := b.write(); err != nil {
		logrus.Warnf("failed to remember the servers: %v", err)
	}
	b.drop(func(server string) bool { return !slices.Contains(servers, server) })
}

func (b *Balancer) accept() {
	for {
		client, err := b.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			logrus.Warnf("load balancer: %v", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		go b.serve(client)
	}
}

func (b *Balancer) serve(client net.Conn) {
	defer client.Close()
	upstream, server, err := b.dial()
	if err != nil {
		logrus.Debugf("load balancer: %v", err)
		return
	}
	defer upstream.Close()
	b.mu.Lock()
	b.open[upstream] = server
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.open, upstream)
		b.mu.Unlock()
	}()
	done := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{client, upstream}, {upstream, client}} {
		go func() {
			_, _ = io.Copy(pair[0], pair[1])
			done <- struct{}{}
		}()
	}
	<-done
}

// dial tries the servers in turn, the one that answered last first, and what
// the settings name last.
func (b *Balancer) dial() (net.Conn, string, error) {
	var failures []error
	for _, server := range b.order() {
		conn, err := net.DialTimeout("tcp", server, dialTimeout)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		b.mu.Lock()
		b.preferred = server
		b.mu.Unlock()
		return conn, server, nil
	}
	return nil, "", errors.Join(failures...)
}

func (b *Balancer) order() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	order := slices.Clone(b.servers)
	if i := slices.Index(order, b.preferred); i > 0 {
		order = append(order[i:], order[:i]...)
	}
	if !slices.Contains(order, b.fallback) {
		order = append(order, b.fallback)
	}
	return order
}

func (b *Balancer) check(ctx context.Context) {
	failed := map[string]int{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(checkEvery):
		}
		for _, server := range b.inUse() {
			conn, err := net.DialTimeout("tcp", server, dialTimeout)
			if err == nil {
				_ = conn.Close()
				delete(failed, server)
				continue
			}
			if failed[server]++; failed[server] < failedChecks {
				continue
			}
			delete(failed, server)
			logrus.Warnf("load balancer: closing the connections to %s: %v", server, err)
			b.drop(func(other string) bool { return other == server })
		}
	}
}

func (b *Balancer) inUse() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var servers []string
	for _, server := range b.open {
		servers = append(servers, server)
	}
	return slices.Compact(slices.Sorted(slices.Values(servers)))
}

func (b *Balancer) drop(gone func(server string) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for conn, server := range b.open {
		if gone(server) {
			_ = conn.Close()
		}
	}
}

func (b *Balancer) write() error {
	b.mu.Lock()
	content, err := json.MarshalIndent(state{ServerURL: b.serverURL, ServerAddresses: b.servers}, "", "  ")
	b.mu.Unlock()
	if err != nil {
		return err
	}
	return layout.WriteFile(b.file, append(content, '\n'), 0o600)
}

func read(file string) (state, error) {
	var known state
	content, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return known, nil
	}
	if err != nil {
		return known, err
	}
	if err := json.Unmarshal(content, &known); err != nil {
		return state{}, fmt.Errorf("%s: %w", file, err)
	}
	return known, nil
}
