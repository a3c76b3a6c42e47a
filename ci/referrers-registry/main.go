// A registry in memory that lists what refers to an image, which Debian's does not: go-containerregistry's, for tests. It prints
// its address and serves until it is killed.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
)

// More than any manifest has.
const manifestLimit = 16 << 20

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	silent := log.New(io.Discard, "", 0)
	handler := registry.New(registry.WithReferrersSupport(true), registry.Logger(silent))
	log.Fatal(http.Serve(listener, withSubject(handler)))
}

// The specification wants OCI-Subject in the answer to a manifest that refers to another; go-containerregistry leaves it out.
func withSubject(next http.Handler) http.Handler {
	return http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		if request.Method == http.MethodPut && strings.Contains(request.URL.Path, "/manifests/") {
			body, err := io.ReadAll(http.MaxBytesReader(answer, request.Body, manifestLimit))
			if err != nil {
				http.Error(answer, err.Error(), http.StatusRequestEntityTooLarge)
				return
			}
			request.Body = io.NopCloser(bytes.NewReader(body))
			var manifest struct {
				Subject *struct {
					Digest string `json:"digest"`
				} `json:"subject"`
			}
			if json.Unmarshal(body, &manifest) == nil && manifest.Subject != nil {
				answer.Header().Set("OCI-Subject", manifest.Subject.Digest)
			}
		}
		next.ServeHTTP(answer, request)
	})
}
