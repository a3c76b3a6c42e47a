package datastore

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"
	core "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// What K3s notes on the Node of a server with etcd.
const (
	RoleLabel         = "node-role.kubernetes.io/etcd"
	NameAnnotation    = "etcd.k3s.cattle.io/node-name"
	AddressAnnotation = "etcd.k3s.cattle.io/node-address"
)

const watchInterval = 15 * time.Second

// gone is a member whose Node was deleted.
type gone struct {
	name, address string
}

// Watch removes the members whose Nodes are deleted and keeps in mind who the
// members are. It returns when ctx ends, or with ErrRemoved when another server
// has removed this one.
func (s *Store) Watch(ctx context.Context, nodes kubernetes.Interface) error {
	deleted := make(chan gone, 16)
	factory := informers.NewSharedInformerFactory(nodes, 0)
	_, err := factory.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		DeleteFunc: func(object any) {
			if member, ok := memberOf(object); ok && member.name != s.name {
				deleted <- member
			}
		},
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	client, err := Client(s.data)
	if err != nil {
		return err
	}
	defer client.Close()
	pending := map[gone]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case member := <-deleted:
			pending[member] = true
		case <-time.After(watchInterval):
		}
		attempt, cancel := context.WithTimeout(ctx, requestTimeout)
		for member := range pending {
			if err := removeMember(attempt, client, member.name, member.address); err != nil {
				logrus.Warnf("failed to remove etcd member %s, trying again: %v", member.name, err)
				continue
			}
			delete(pending, member)
		}
		list, err := client.MemberList(attempt)
		cancel()
		if err == nil {
			if err := s.remember(list.Members); err != nil {
				logrus.Warnf("failed to remember the etcd members: %v", err)
			}
			continue
		}
		s.others = s.knownOthers()
		if ctx.Err() == nil && s.removed(ctx) {
			return ErrRemoved
		}
	}
}

func memberOf(object any) (gone, bool) {
	if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = last.Obj
	}
	node, ok := object.(*core.Node)
	if !ok {
		return gone{}, false
	}
	member := gone{name: node.Annotations[NameAnnotation], address: node.Annotations[AddressAnnotation]}
	_, isServer := node.Labels[RoleLabel]
	return member, isServer && member.name != "" && member.address != ""
}
