package datastore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	requestTimeout = 10 * time.Second
	joinRetry      = 2 * time.Second
)

// ErrRemoved is K3s's wording.
var ErrRemoved = errors.New("this node has been removed from the cluster please restart k3s to rejoin the cluster")

var errDuplicate = errors.New("etcd cluster join failed: duplicate node name found, please use a unique name for this node (or delete the Node that had it)")

// join adds this server to the members of its cluster, as a learner that is
// promoted once it has caught up. It waits for a cluster that takes no member
// now: one that lacks its majority, or has another learner.
func (s *Store) join(ctx context.Context) error {
	for {
		err := s.tryJoin(ctx)
		if err == nil || errors.Is(err, errDuplicate) {
			return err
		}
		logrus.Infof("Waiting to be taken as a member by %s: %v", strings.Join(s.others, ", "), err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(joinRetry):
		}
	}
}

func (s *Store) tryJoin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	client, err := Client(s.data, s.others...)
	if err != nil {
		return err
	}
	defer client.Close()
	list, err := client.MemberList(ctx)
	if err != nil {
		return err
	}
	cluster, isMember, err := s.plan(list.Members)
	if err != nil {
		return err
	}
	if !isMember {
		logrus.Infof("Adding member %s=%s to etcd cluster %v", s.name, s.peerURL(), cluster)
		if _, err := client.MemberAddAsLearner(ctx, []string{s.peerURL()}); err != nil {
			return err
		}
		cluster = append(cluster, s.name+"="+s.peerURL())
	}
	s.start = []string{"--initial-cluster=" + strings.Join(cluster, ","), "--initial-cluster-state=existing"}
	return s.remember(list.Members)
}

// plan returns the cluster as etcd wants it named at the first start of a
// member, and whether this server is a member already: an earlier attempt may
// have got so far. A member that has never started has no name.
func (s *Store) plan(members []*etcdserverpb.Member) (cluster []string, isMember bool, err error) {
	for _, member := range members {
		name := member.Name
		if slices.Contains(member.PeerURLs, s.peerURL()) && (name == "" || name == s.name) {
			name, isMember = s.name, true
		} else if slices.Contains(member.PeerURLs, s.peerURL()) || nodeOf(name) == s.nodeName {
			return nil, false, fmt.Errorf("%w: member %s at %s", errDuplicate, name, strings.Join(member.PeerURLs, ","))
		}
		if name == "" {
			name = fmt.Sprintf("unstarted-%x", member.ID)
		}
		for _, peer := range member.PeerURLs {
			cluster = append(cluster, name+"="+peer)
		}
	}
	return cluster, isMember, nil
}

// nodeOf cuts the random part off a member's name.
func nodeOf(member string) string {
	if i := strings.LastIndex(member, "-"); i > 0 {
		return member[:i]
	}
	return member
}

func (s *Store) promote(ctx context.Context, id uint64) error {
	client, err := Client(s.data, s.others...)
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = client.MemberPromote(ctx, id)
	if errors.Is(err, rpctypes.ErrMemberNotLearner) {
		return nil
	}
	return err
}

// removed tells whether the other members agree that this server is none of
// them. One that reaches no majority of them is not told so.
func (s *Store) removed(ctx context.Context) bool {
	if len(s.others) == 0 || !s.data.ManagedEtcd() {
		return false
	}
	if err := s.settleName(false); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	client, err := Client(s.data, s.others...)
	if err != nil {
		return false
	}
	defer client.Close()
	list, err := client.MemberList(ctx)
	if err != nil {
		logrus.Infof("the other etcd members do not answer: %v", err)
		return false
	}
	return !slices.ContainsFunc(list.Members, s.isOwn)
}

// isOwn recognizes this server's member under its name and, as it may have
// moved or never started, under its address.
func (s *Store) isOwn(member *etcdserverpb.Member) bool {
	return member.Name == s.name || (member.Name == "" && slices.Contains(member.PeerURLs, s.peerURL()))
}

// removeMember takes the member of a server that is no more out of the cluster.
func removeMember(ctx context.Context, client *clientv3.Client, name, address string) error {
	list, err := client.MemberList(ctx)
	if err != nil {
		return err
	}
	for _, member := range list.Members {
		if member.Name != name || !slices.ContainsFunc(member.PeerURLs, func(peer string) bool { return hostOf(peer) == address }) {
			continue
		}
		logrus.Infof("Removing name=%s id=%d address=%s from etcd", name, member.ID, address)
		if _, err := client.MemberRemove(ctx, member.ID); err != nil && !errors.Is(err, rpctypes.ErrMemberNotFound) {
			return err
		}
	}
	return nil
}

func hostOf(address string) string {
	parsed, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return parsed.Hostname()
}
