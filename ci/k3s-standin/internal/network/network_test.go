package network

import (
	"reflect"
	"testing"

	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func node(name, subnet string, addresses ...core.NodeAddress) *core.Node {
	return &core.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       core.NodeSpec{PodCIDR: subnet},
		Status:     core.NodeStatus{Addresses: addresses},
	}
}

func TestPlan(t *testing.T) {
	hostname := core.NodeAddress{Type: core.NodeHostName, Address: "name"}
	internal := func(address string) core.NodeAddress {
		return core.NodeAddress{Type: core.NodeInternalIP, Address: address}
	}
	routes, own := plan("self", []*core.Node{
		node("self", "10.42.0.0/24", internal("192.0.2.1")),
		node("peer", "10.42.1.0/24", hostname, internal("192.0.2.2"), internal("192.0.2.22")),
		node("no subnet yet", "", internal("192.0.2.3")),
		node("no address yet", "10.42.3.0/24", hostname),
	})
	if want := map[string]string{"10.42.1.0/24": "192.0.2.2"}; own != "10.42.0.0/24" || !reflect.DeepEqual(routes, want) {
		t.Errorf("got %q and %v", own, routes)
	}
	if _, own := plan("absent", nil); own != "" {
		t.Errorf("a node that is not there has %q", own)
	}
}
