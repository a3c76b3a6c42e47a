package loadbalancer

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"orch.dev/k3s-standin/internal/layout"
)

// backend is a server that says its name to whoever connects, and then keeps
// the connection open.
type backend struct {
	listener net.Listener
}

func newBackend(t *testing.T, name string) *backend {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, name)
		}
	}()
	return &backend{listener}
}

func (b *backend) address() string { return b.listener.Addr().String() }

func start(t *testing.T, file, fallback string) *Balancer {
	t.Helper()
	balancer, err := Start(file, "https://"+fallback, fallback, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(balancer.Stop)
	return balancer
}

// connect returns who answered, and the connection.
func connect(t *testing.T, balancer *Balancer) (string, net.Conn) {
	t.Helper()
	conn, err := net.Dial("tcp", balancer.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	name := make([]byte, 1)
	if _, err := io.ReadFull(conn, name); err != nil {
		t.Fatal(err)
	}
	return string(name), conn
}

func saved(t *testing.T, file string) state {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s state
	if err := json.Unmarshal(content, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestItGoesToAServerThatAnswers(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	balancer := start(t, filepath.Join(t.TempDir(), "lb.json"), a.address())
	balancer.Update([]string{a.address(), b.address()})
	_ = a.listener.Close()
	for range 3 {
		if name, _ := connect(t, balancer); name != "b" {
			t.Errorf("got %q", name)
		}
	}
}

func TestConnectionsToAServerThatLeftAreClosed(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	balancer := start(t, filepath.Join(t.TempDir(), "lb.json"), a.address())
	name, conn := connect(t, balancer)
	if name != "a" {
		t.Fatalf("got %q", name)
	}
	balancer.Update([]string{b.address()})
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("the connection was not closed in order: %v", err)
	}
	if name, _ := connect(t, balancer); name != "b" {
		t.Errorf("got %q", name)
	}
}

func TestTheServersOutliveARestart(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	file := filepath.Join(t.TempDir(), "etc", "lb.json")
	first := start(t, file, a.address())
	first.Update([]string{b.address(), a.address(), b.address()})
	first.Update(nil)
	first.Stop()
	_ = a.listener.Close()

	second := start(t, file, a.address())
	if name, _ := connect(t, second); name != "b" {
		t.Errorf("got %q", name)
	}
	want := []string{a.address(), b.address()}
	if want[0] > want[1] {
		want[0], want[1] = want[1], want[0]
	}
	if got := saved(t, file); got.ServerURL != "https://"+a.address() || !reflect.DeepEqual(got.ServerAddresses, want) {
		t.Errorf("got %+v", got)
	}
}

func TestOtherSettingsStartAfresh(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lb.json")
	for _, content := range []string{`{"ServerURL":"https://192.0.2.1:6443","ServerAddresses":["192.0.2.1:6443"]}`, `{`} {
		if err := layout.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		a := newBackend(t, "a")
		start(t, file, a.address())
		if got := saved(t, file); !reflect.DeepEqual(got.ServerAddresses, []string{a.address()}) {
			t.Errorf("%s: got %+v", content, got)
		}
	}
}

func TestTheServerInTheSettingsIsTheLastResort(t *testing.T) {
	a, b := newBackend(t, "a"), newBackend(t, "b")
	balancer := start(t, filepath.Join(t.TempDir(), "lb.json"), a.address())
	balancer.Update([]string{b.address()})
	_ = b.listener.Close()
	if name, _ := connect(t, balancer); name != "a" {
		t.Errorf("got %q", name)
	}
}
