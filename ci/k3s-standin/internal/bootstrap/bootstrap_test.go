package bootstrap

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"testing"

	"orch.dev/k3s-standin/internal/layout"
	"orch.dev/k3s-standin/internal/token"
)

var settings = Settings{ClusterCIDR: "10.42.0.0/16", ServiceCIDR: "10.43.0.0/16", ClusterDNS: "10.43.0.10", ClusterDomain: "cluster.local"}

// newServer is a data directory with everything that a bundle is made of.
func newServer(t *testing.T, managed bool) layout.Data {
	t.Helper()
	data := layout.Data(t.TempDir())
	put := func(path, content string) {
		t.Helper()
		if err := layout.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range files {
		put(data.Server(name), "content of "+name)
	}
	put(data.Server("token"), token.Format([]byte("a CA"), "server:secret")+"\n")
	if managed {
		put(data.EtcdName(), "first-0011aabb")
	}
	if err := WriteSettings(data, settings); err != nil {
		t.Fatal(err)
	}
	if err := WriteMembers(data, []string{"https://192.0.2.1:2379"}); err != nil {
		t.Fatal(err)
	}
	return data
}

func ask(data layout.Data, user, password string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(http.MethodGet, Path, nil)
	if user != "" {
		request.SetBasicAuth(user, password)
	}
	answer := httptest.NewRecorder()
	Handler(data)(answer, request)
	return answer
}

func TestTheServerTokenOpensTheBundle(t *testing.T) {
	data := newServer(t, true)
	answer := ask(data, "server", "secret")
	var bundle Bundle
	if err := json.Unmarshal(answer.Body.Bytes(), &bundle); answer.Code != http.StatusOK || err != nil {
		t.Fatalf("got %d, %v", answer.Code, err)
	}
	if !reflect.DeepEqual(bundle.Members, []string{"https://192.0.2.1:2379"}) || bundle.Settings.Mismatch(settings) != nil {
		t.Errorf("got %+v", bundle)
	}
	joined := layout.Data(t.TempDir())
	if err := bundle.Write(joined); err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		want, _ := os.ReadFile(data.Server(name))
		if got, err := os.ReadFile(joined.Server(name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

func TestNothingElseOpensIt(t *testing.T) {
	data := newServer(t, true)
	for name, credentials := range map[string][2]string{
		"nobody":             {"", ""},
		"an agent":           {"node", "secret"},
		"a wrong password":   {"server", "secre"},
		"no password":        {"server", ""},
		"a bootstrap token":  {"server", "abcdef.0123456789abcdef"},
		"the whole token":    {"server", token.Format([]byte("a CA"), "server:secret")},
		"another user again": {"admin", "secret"},
	} {
		answer := ask(data, credentials[0], credentials[1])
		if answer.Code != http.StatusUnauthorized || strings.Contains(answer.Body.String(), "content of") {
			t.Errorf("%s: got %d", name, answer.Code)
		}
	}
}

func TestAServerOnItsOwnTakesNoOther(t *testing.T) {
	if answer := ask(newServer(t, false), "server", "secret"); answer.Code != http.StatusConflict || !strings.Contains(answer.Body.String(), Disabled) {
		t.Errorf("got %d: %s", answer.Code, answer.Body)
	}
}

func TestAMismatchNamesTheOption(t *testing.T) {
	for option, change := range map[string]func(*Settings){
		"cluster-cidr":   func(s *Settings) { s.ClusterCIDR = "10.1.0.0/16" },
		"service-cidr":   func(s *Settings) { s.ServiceCIDR = "10.1.0.0/16" },
		"cluster-dns":    func(s *Settings) { s.ClusterDNS = "10.43.0.11" },
		"cluster-domain": func(s *Settings) { s.ClusterDomain = "example.local" },
		"disable":        func(s *Settings) { s.Disable = []string{"traefik"} },
	} {
		own := settings
		change(&own)
		if err := settings.Mismatch(own); err == nil || !strings.Contains(err.Error(), option+" is ") {
			t.Errorf("%s: got %v", option, err)
		}
	}
	one, other := settings, settings
	one.Disable, other.Disable = []string{"a", "b"}, []string{"b", "a", "b"}
	if err := one.Mismatch(other); err != nil {
		t.Errorf("the same list in another order: %v", err)
	}
}

func TestABundleWritesOnlyWhatABundleHolds(t *testing.T) {
	whole, err := Collect(newServer(t, true))
	if err != nil {
		t.Fatal(err)
	}
	data := layout.Data(t.TempDir())
	whole.Files["../../etc/passwd"] = []byte("x")
	if err := whole.Write(data); err == nil {
		t.Error("a file of another name was written")
	}
	delete(whole.Files, "../../etc/passwd")
	delete(whole.Files, "tls/service.key")
	if err := whole.Write(data); err == nil {
		t.Error("half a bundle was written")
	}
}

func TestASealedBundleOpensWithItsPasswordOnly(t *testing.T) {
	bundle, err := Collect(newServer(t, true))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := Seal(bundle, "secret")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, []byte("tls/server-ca.key")) {
		t.Error("it is not encrypted")
	}
	opened, err := Open(sealed, "secret")
	if err != nil || !reflect.DeepEqual(opened, bundle) {
		t.Errorf("got %+v, %v", opened, err)
	}
	for name, content := range map[string][]byte{"cut off": sealed[:20], "nothing": nil, "changed": append(bytes.Clone(sealed[:len(sealed)-1]), 0, 1)} {
		if _, err := Open(content, "secret"); !errors.Is(err, ErrOtherToken) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Open(sealed, "other"); !errors.Is(err, ErrOtherToken) {
		t.Errorf("another password: got %v", err)
	}
	if Key("secret") == Key("other") || !strings.HasPrefix(Key("secret"), KeyPrefix) {
		t.Errorf("got %s", Key("secret"))
	}
}
