// Package clientaccess is how a node that joins comes to trust its server: by
// the hash in its token.
package clientaccess

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"orch.dev/k3s-standin/internal/component"
	"orch.dev/k3s-standin/internal/token"
)

// RequestTimeout bounds one request to a server.
const RequestTimeout = 10 * time.Second

const maxAnswer = 1 << 20

// ErrRefused marks an answer that waiting cannot improve.
var ErrRefused = errors.New("the server refused this node")

// StatusError is an answer other than 200.
type StatusError struct {
	Code    int
	address string
	message string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("GET %s: %d %s: %s", e.address, e.Code, http.StatusText(e.Code), e.message)
}

// Base returns the scheme, host and port of a server's URL.
func Base(serverURL string) (string, error) {
	server, err := url.Parse(serverURL)
	if err != nil || server.Scheme != "https" || server.Host == "" {
		return "", fmt.Errorf("server %q is not an https URL", serverURL)
	}
	return "https://" + server.Host, nil
}

// FetchCA returns the server's CA once the token's hash has vouched for it.
func FetchCA(ctx context.Context, server string, tok token.Token) ([]byte, error) {
	// The CA is what the token's hash verifies, so this one request cannot be.
	unverified := &http.Client{Timeout: RequestTimeout, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	defer unverified.CloseIdleConnections()
	ca, err := Get(ctx, unverified, server+component.CACertsPath, nil)
	if err != nil {
		return nil, err
	}
	if tok.CAHash == "" {
		logrus.Warn("the token carries no CA hash: the server's identity is not verified")
	} else if hash := token.HashCA(ca); hash != tok.CAHash {
		return nil, fmt.Errorf("%w: token CA hash does not match the Cluster CA certificate hash: %s != %s (another cluster answers at %s, or the token is of another one)",
			ErrRefused, tok.CAHash, hash, server)
	}
	return ca, nil
}

// Trusting returns a client that believes one CA.
func Trusting(ca []byte) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Client{Timeout: RequestTimeout, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
}

// Get returns the body of an answer; prepare, if any, completes the request.
func Get(ctx context.Context, client *http.Client, address string, prepare func(*http.Request)) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	if prepare != nil {
		prepare(request)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, &StatusError{Code: response.StatusCode, address: address, message: strings.TrimSpace(string(content))}
	}
	return content, nil
}
