package bootstrap

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"os"

	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/token"
)

// Path is K3s's own.
const Path = "/v1-k3s/server-bootstrap"

// Disabled is what K3s says where it runs on SQLite.
const Disabled = "etcd datastore disabled"

// Handler answers a joining server: with the bundle if it knows the server
// token, and with nothing that helps it otherwise.
func Handler(data layout.Data) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		content, err := os.ReadFile(data.Server("token"))
		if err != nil {
			http.Error(w, "not available", http.StatusServiceUnavailable)
			return
		}
		own, err := token.Parse(string(content))
		if err != nil {
			http.Error(w, "not available", http.StatusServiceUnavailable)
			return
		}
		given, wanted := sha256.Sum256([]byte(password)), sha256.Sum256([]byte(own.Bearer))
		if subtle.ConstantTimeCompare(given[:], wanted[:]) != 1 || user != "server" {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		if !data.ManagedEtcd() {
			http.Error(w, Disabled, http.StatusConflict)
			return
		}
		bundle, err := Collect(data)
		if err == nil {
			bundle.Members, err = ReadMembers(data)
		}
		if err != nil {
			http.Error(w, "not available", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(bundle)
	}
}

// ReadMembers returns the client URLs of etcd's members, as far as this server
// has seen them.
func ReadMembers(data layout.Data) ([]string, error) {
	content, err := os.ReadFile(data.EtcdMembers())
	if err != nil {
		return nil, err
	}
	var members []string
	return members, json.Unmarshal(content, &members)
}

// WriteMembers is ReadMembers' inverse.
func WriteMembers(data layout.Data, members []string) error {
	content, err := json.Marshal(members)
	if err != nil {
		return err
	}
	if current, err := os.ReadFile(data.EtcdMembers()); err == nil && string(current) == string(content) {
		return nil
	}
	return layout.WriteFile(data.EtcdMembers(), content, 0o600)
}
