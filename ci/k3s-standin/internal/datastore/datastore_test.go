package datastore

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
)

func settings(t *testing.T, change func(*config.Config)) *config.Config {
	t.Helper()
	cfg := &config.Config{DataDir: layout.Data(t.TempDir()), NodeName: "first-node", NodeIP: "192.0.2.1"}
	if change != nil {
		change(cfg)
	}
	return cfg
}

func open(t *testing.T, cfg *config.Config) *Store {
	t.Helper()
	store, err := Open(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestAServerOnItsOwnListensOnTheLoopbackOnly(t *testing.T) {
	cfg := settings(t, nil)
	store := open(t, cfg)
	if store.Managed || cfg.DataDir.ManagedEtcd() {
		t.Error("it is managed")
	}
	args := strings.Join(store.Args(), " ")
	if strings.Contains(args, "192.0.2.1") || !strings.Contains(args, "--initial-cluster=default=https://127.0.0.1:2380") {
		t.Errorf("got %s", args)
	}
}

func TestTheFirstServerStartsACluster(t *testing.T) {
	cfg := settings(t, func(c *config.Config) { c.ClusterInit = true; c.EtcdArgs = []string{"quota-backend-bytes=1"} })
	store := open(t, cfg)
	if !strings.HasPrefix(store.MemberName(), "first-node-") || nodeOf(store.MemberName()) != "first-node" {
		t.Errorf("got %q", store.MemberName())
	}
	for _, want := range []string{
		"--name=" + store.MemberName(), "--initial-cluster=" + store.MemberName() + "=https://192.0.2.1:2380", "--initial-cluster-state=new",
		"--listen-client-urls=https://127.0.0.1:2379,https://192.0.2.1:2379", "--quota-backend-bytes=1",
	} {
		if !slices.Contains(store.Args(), want) {
			t.Errorf("%s is not in %s", want, store.Args())
		}
	}
	cfg.ClusterInit = false
	if again := open(t, cfg); !again.Managed || again.MemberName() != store.MemberName() {
		t.Errorf("a restart without the option: %+v", again)
	}
}

func TestDataThatIsThereIsNotJoinedAgain(t *testing.T) {
	cfg := settings(t, func(c *config.Config) { c.ServerURL = "https://192.0.2.9:6443" })
	if err := os.MkdirAll(cfg.DataDir.Etcd("member", "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	if args := strings.Join(open(t, cfg).Args(), " "); strings.Contains(args, "--initial-cluster=") {
		t.Errorf("got %s", args)
	}
}

func member(id uint64, name string, address string) *etcdserverpb.Member {
	return &etcdserverpb.Member{ID: id, Name: name, PeerURLs: []string{"https://" + address + ":2380"}}
}

func TestThePlanOfAJoin(t *testing.T) {
	store := &Store{nodeName: "first-node", name: "first-node-00aa11bb", address: "192.0.2.1"}
	first := member(1, "other-11111111", "192.0.2.2")
	for name, c := range map[string]struct {
		members  []*etcdserverpb.Member
		want     []string
		isMember bool
	}{
		"a new member": {
			[]*etcdserverpb.Member{first, member(255, "", "192.0.2.3")},
			[]string{"other-11111111=https://192.0.2.2:2380", "unstarted-ff=https://192.0.2.3:2380"}, false,
		},
		"added, but never started": {
			[]*etcdserverpb.Member{first, member(2, "", "192.0.2.1")},
			[]string{"other-11111111=https://192.0.2.2:2380", "first-node-00aa11bb=https://192.0.2.1:2380"}, true,
		},
	} {
		got, isMember, err := store.plan(c.members)
		if err != nil || isMember != c.isMember || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %q, %v, %v", name, got, isMember, err)
		}
	}
	for name, other := range map[string]*etcdserverpb.Member{
		"its node's name": member(2, "first-node-99999999", "192.0.2.7"),
		"its own address": member(2, "third-99999999", "192.0.2.1"),
	} {
		if _, _, err := store.plan([]*etcdserverpb.Member{first, other}); !errors.Is(err, errDuplicate) {
			t.Errorf("%s is taken: got %v", name, err)
		}
	}
}

func TestOnlyAServersNodeIsAMember(t *testing.T) {
	node := func(labels, annotations map[string]string) *core.Node {
		return &core.Node{ObjectMeta: metav1.ObjectMeta{Name: "x", Labels: labels, Annotations: annotations}}
	}
	label := map[string]string{RoleLabel: "true"}
	notes := map[string]string{NameAnnotation: "x-00000000", AddressAnnotation: "192.0.2.1"}
	want := gone{"x-00000000", "192.0.2.1"}
	for _, object := range []any{node(label, notes), cache.DeletedFinalStateUnknown{Obj: node(label, notes)}} {
		if got, ok := memberOf(object); !ok || got != want {
			t.Errorf("got %+v, %v", got, ok)
		}
	}
	for _, object := range []any{node(nil, notes), node(label, nil), &core.Pod{}} {
		if got, ok := memberOf(object); ok {
			t.Errorf("got %+v", got)
		}
	}
}

func TestAResetNeedsDataOrASnapshot(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*config.Config)
		want    string
	}{
		"nothing there": {nil, "no etcd data"},
		"reset before": {func(c *config.Config) {
			if err := FinishReset(c.DataDir); err != nil {
				t.Fatal(err)
			}
		}, "was previously reset"},
		"no snapshot": {func(c *config.Config) { c.RestorePath = "/nonexistent" }, "does not exist"},
		"a folder":    {func(c *config.Config) { c.RestorePath = t.TempDir() }, "not a directory"},
	} {
		if err := MayReset(settings(t, c.prepare)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestASnapshotThatIsNoneLeavesTheDataAlone(t *testing.T) {
	cfg := settings(t, func(c *config.Config) { c.ClusterReset = true; c.RestorePath = filepath.Join(t.TempDir(), "snapshot") })
	if err := os.WriteFile(cfg.RestorePath, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cfg.DataDir.Etcd("member", "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Reset(cfg); err == nil || !cfg.DataDir.EtcdInitialized() {
		t.Errorf("got %v; the data is there: %v", err, cfg.DataDir.EtcdInitialized())
	}
	if _, err := SealedBootstrap(cfg.RestorePath, "/bootstrap/x"); err == nil || !strings.Contains(err.Error(), "not a snapshot") {
		t.Errorf("got %v", err)
	}
}

func TestTheLastBackupsAreKept(t *testing.T) {
	data := layout.Data(t.TempDir())
	for _, name := range []string{"etcd-old-9", "etcd-old-10", "etcd-old-11", "etcd-old-12", "etcd-old-13", "etcd"} {
		if err := os.MkdirAll(data.Server("db", name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := backUp(data); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(data.Etcd() + "*")
	if err != nil || len(left) != keptBackups || slices.Contains(left, data.Etcd()) || slices.Contains(left, data.Etcd()+"-old-9") {
		t.Errorf("got %s, %v", left, err)
	}
}
