// Package datastore is this server's etcd member: what etcd is started with,
// how it becomes and stays a member of its cluster, and how it is reset. The
// process itself is the caller's.
//
// A server that K3s would run on SQLite has a member of its own that listens on
// the loopback only; one that K3s would run on etcd is called managed.
package datastore

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/grpclog"
	certutil "k8s.io/client-go/util/cert"

	"orch.dev/k3s-standin/internal/bootstrap"
	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
)

// ClientAddress is where every server reaches its own member.
const ClientAddress = "127.0.0.1:" + layout.EtcdClientPort

const (
	loopbackPeer = "127.0.0.1:" + layout.EtcdPeerPort
	dialTimeout  = 2 * time.Second
)

// Store is this server's member.
type Store struct {
	Managed bool

	data     layout.Data
	nodeName string
	name     string
	address  string
	userArgs []string
	// start is what etcd is told about its first start.
	start []string
	// others are the client URLs of members that can be asked for help.
	others []string
}

// Open settles how this server's etcd is to be started: alone, as the first
// member, as a new one of the cluster whose members' client URLs are given, or
// with the data that is there.
func Open(ctx context.Context, cfg *config.Config, members []string) (*Store, error) {
	s := newStore(cfg)
	if !s.Managed {
		return s, os.MkdirAll(s.data.Etcd(), 0o700)
	}
	if s.data.EtcdInitialized() {
		s.others = s.knownOthers()
		if !s.removed(ctx) {
			return s, s.settleName(false)
		}
		logrus.Warn("this server was removed from its cluster: moving its etcd data away to join again")
		if err := backUp(s.data); err != nil {
			return nil, err
		}
		members = s.others
	}
	if err := s.settleName(false); err != nil {
		return nil, err
	}
	if cfg.ServerURL == "" && len(members) == 0 {
		s.start = []string{"--initial-cluster=" + s.name + "=" + s.peerURL(), "--initial-cluster-state=new"}
		return s, nil
	}
	s.others = members
	return s, s.join(ctx)
}

func newStore(cfg *config.Config) *Store {
	return &Store{
		Managed: cfg.ClusterInit || cfg.ClusterReset || cfg.ServerURL != "" || cfg.DataDir.ManagedEtcd(),
		data:    cfg.DataDir, nodeName: cfg.NodeName, address: cfg.NodeIP, userArgs: cfg.EtcdArgs,
	}
}

// MemberName and MemberAddress are what K3s notes on the server's Node.
func (s *Store) MemberName() string    { return s.name }
func (s *Store) MemberAddress() string { return s.address }

func (s *Store) peerURL() string {
	return "https://" + net.JoinHostPort(s.address, layout.EtcdPeerPort)
}

func (s *Store) clientURL() string {
	return "https://" + net.JoinHostPort(s.address, layout.EtcdClientPort)
}

// settleName gives the member K3s's kind of name, a new one if asked to.
func (s *Store) settleName(fresh bool) error {
	content, err := os.ReadFile(s.data.EtcdName())
	if err == nil && !fresh {
		s.name = strings.TrimSpace(string(content))
		return nil
	}
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if s.name, err = newName(s.nodeName); err != nil {
		return err
	}
	if err := os.MkdirAll(s.data.Etcd(), 0o700); err != nil {
		return err
	}
	return layout.WriteFile(s.data.EtcdName(), []byte(s.name), 0o600)
}

func newName(node string) (string, error) {
	random := make([]byte, 4)
	_, err := rand.Read(random)
	return node + "-" + hex.EncodeToString(random), err
}

// Args are etcd's arguments.
func (s *Store) Args() []string {
	pki := func(name string) string { return s.data.Server("tls", "etcd", name) }
	args := []string{
		"--data-dir=" + s.data.Etcd(),
		"--client-cert-auth",
		"--cert-file=" + pki("server-client.crt"),
		"--key-file=" + pki("server-client.key"),
		"--trusted-ca-file=" + pki("server-ca.crt"),
		"--peer-client-cert-auth",
		"--logger=zap",
		"--log-level=warn",
	}
	if s.Managed {
		args = append(args,
			"--name="+s.name,
			"--listen-client-urls=https://"+ClientAddress+","+s.clientURL(),
			"--advertise-client-urls="+s.clientURL(),
			"--listen-peer-urls=https://"+loopbackPeer+","+s.peerURL(),
			"--initial-advertise-peer-urls="+s.peerURL(),
			"--peer-cert-file="+pki("peer-server-client.crt"),
			"--peer-key-file="+pki("peer-server-client.key"),
			"--peer-trusted-ca-file="+pki("peer-ca.crt"),
		)
		args = append(args, s.start...)
	} else {
		args = append(args,
			"--name=default",
			"--listen-client-urls=https://"+ClientAddress,
			"--advertise-client-urls=https://"+ClientAddress,
			"--listen-peer-urls=https://"+loopbackPeer,
			"--initial-advertise-peer-urls=https://"+loopbackPeer,
			"--initial-cluster=default=https://"+loopbackPeer,
			"--peer-cert-file="+pki("server-client.crt"),
			"--peer-key-file="+pki("server-client.key"),
			"--peer-trusted-ca-file="+pki("server-ca.crt"),
		)
	}
	for _, arg := range s.userArgs {
		args = append(args, "--"+arg)
	}
	return args
}

// Ready is nil once the member votes and reads what its cluster agreed on. It
// helps it there: it asks the others to promote a learner, and corrects the
// member's address.
func (s *Store) Ready(ctx context.Context) error {
	client, err := Client(s.data)
	if err != nil {
		return err
	}
	defer client.Close()
	status, err := client.Status(ctx, "https://"+ClientAddress)
	if err != nil || !s.Managed {
		return err
	}
	if status.IsLearner {
		if err := s.promote(ctx, status.Header.MemberId); err != nil {
			return fmt.Errorf("this server has not yet been promoted from learner to voting member: %w", err)
		}
		return errors.New("this server is being promoted to a voting member")
	}
	list, err := client.MemberList(ctx)
	if err != nil {
		return err
	}
	own := slices.IndexFunc(list.Members, func(m *etcdserverpb.Member) bool { return m.ID == status.Header.MemberId })
	if own < 0 {
		return errors.New("this server is not a member of the etcd cluster")
	}
	if urls := list.Members[own].PeerURLs; !slices.Equal(urls, []string{s.peerURL()}) {
		logrus.Infof("etcd: the address of member %s is %s now, it was %s", s.name, s.peerURL(), strings.Join(urls, ","))
		if _, err := client.MemberUpdate(ctx, status.Header.MemberId, []string{s.peerURL()}); err != nil {
			return err
		}
		return errors.New("this member's address is being changed")
	}
	if _, err := client.Get(ctx, "health"); err != nil {
		return err
	}
	return s.remember(list.Members)
}

// remember leaves the members' client URLs to the bootstrap of other servers
// and to this one's next start.
func (s *Store) remember(members []*etcdserverpb.Member) error {
	var urls []string
	for _, member := range members {
		if !member.IsLearner {
			urls = append(urls, member.ClientURLs...)
		}
	}
	slices.Sort(urls)
	return bootstrap.WriteMembers(s.data, urls)
}

func (s *Store) knownOthers() []string {
	members, err := bootstrap.ReadMembers(s.data)
	if err != nil && !os.IsNotExist(err) {
		logrus.Warnf("the other members are not known: %v", err)
	}
	return slices.DeleteFunc(members, func(url string) bool { return url == s.clientURL() })
}

// quietGRPC keeps to errors what gRPC says of connections that it tries again.
var quietGRPC = sync.OnceFunc(func() { grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, os.Stderr)) })

// Client returns a client of the given members, or of this server's own.
func Client(data layout.Data, endpoints ...string) (*clientv3.Client, error) {
	pki := func(name string) string { return data.Server("tls", "etcd", name) }
	pair, err := tls.LoadX509KeyPair(pki("client.crt"), pki("client.key"))
	if err != nil {
		return nil, err
	}
	roots, err := certutil.NewPool(pki("server-ca.crt"))
	if err != nil {
		return nil, err
	}
	if len(endpoints) == 0 {
		endpoints = []string{"https://" + ClientAddress}
	}
	quietGRPC()
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: dialTimeout, Logger: zap.NewNop(),
		TLS: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots},
	})
}
