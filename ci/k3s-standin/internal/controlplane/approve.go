package controlplane

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	certificates "k8s.io/api/certificates/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes"
	certapi "k8s.io/kubernetes/pkg/apis/certificates"
)

const (
	approvePoll   = 2 * time.Second
	nodeUser      = "system:node:"
	nodeGroup     = "system:nodes"
	approveReason = "StandinNodeAddress"
)

// ApproveKubeletServing approves the kubelets' requests for serving
// certificates until ctx ends. Kubernetes signs them but leaves the decision to
// the installation: here a node may have a certificate for the addresses in its
// own Node object and for nothing else.
func (cp *ControlPlane) ApproveKubeletServing(ctx context.Context) {
	undecided := map[string]string{}
	for {
		if err := approvePending(ctx, cp.Client, undecided); err != nil && ctx.Err() == nil {
			logrus.Warnf("failed to look for kubelet certificate requests: %v", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(approvePoll):
		}
	}
}

func approvePending(ctx context.Context, client kubernetes.Interface, undecided map[string]string) error {
	requests := client.CertificatesV1().CertificateSigningRequests()
	list, err := requests.List(ctx, metav1.ListOptions{FieldSelector: "spec.signerName=" + certificates.KubeletServingSignerName})
	if err != nil {
		return err
	}
	for i := range list.Items {
		request := &list.Items[i]
		if len(request.Status.Conditions) > 0 || len(request.Status.Certificate) > 0 {
			continue
		}
		node, err := client.CoreV1().Nodes().Get(ctx, strings.TrimPrefix(request.Spec.Username, nodeUser), metav1.GetOptions{})
		if err == nil {
			err = permitted(request, node)
		}
		if err != nil {
			if undecided[request.Name] != err.Error() {
				logrus.Infof("kubelet certificate request %s of %s is left pending: %v", request.Name, request.Spec.Username, err)
				undecided[request.Name] = err.Error()
			}
			continue
		}
		request.Status.Conditions = append(request.Status.Conditions, certificates.CertificateSigningRequestCondition{
			Type: certificates.CertificateApproved, Status: core.ConditionTrue, Reason: approveReason,
			Message: "the addresses are the node's own",
		})
		if _, err := requests.UpdateApproval(ctx, request.Name, request, metav1.UpdateOptions{}); apierrors.IsConflict(err) {
			// Another server was faster.
			continue
		} else if err != nil {
			return err
		}
		delete(undecided, request.Name)
		logrus.Infof("approved the serving certificate of %s", request.Spec.Username)
	}
	return nil
}

// permitted checks a request against the node that sent it.
func permitted(request *certificates.CertificateSigningRequest, node *core.Node) error {
	if request.Spec.Username != nodeUser+node.Name || !slices.Contains(request.Spec.Groups, nodeGroup) {
		return errors.New("the requester is not this node")
	}
	block, _ := pem.Decode(request.Spec.Request)
	if block == nil {
		return errors.New("the request is not PEM")
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	usages := sets.NewString()
	for _, usage := range request.Spec.Usages {
		usages.Insert(string(usage))
	}
	if err := certapi.ValidateKubeletServingCSR(parsed, usages); err != nil {
		return err
	}
	if parsed.Subject.CommonName != request.Spec.Username {
		return fmt.Errorf("the subject %s is not the requester", parsed.Subject.CommonName)
	}
	names, addresses := sets.NewString(), sets.NewString()
	for _, address := range node.Status.Addresses {
		switch address.Type {
		case core.NodeInternalIP, core.NodeExternalIP:
			addresses.Insert(net.ParseIP(address.Address).String())
		default:
			names.Insert(address.Address)
		}
	}
	for _, name := range parsed.DNSNames {
		if !names.Has(name) {
			return fmt.Errorf("%s is not a name of the node", name)
		}
	}
	for _, ip := range parsed.IPAddresses {
		if !addresses.Has(ip.String()) {
			return fmt.Errorf("%s is not an address of the node", ip)
		}
	}
	return nil
}
