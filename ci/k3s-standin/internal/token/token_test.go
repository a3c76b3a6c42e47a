package token

import (
	"encoding/csv"
	"os"
	"strings"
	"testing"

	"orch.dev/k3s-standin/internal/layout"
)

const hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParse(t *testing.T) {
	for text, want := range map[string]Token{
		"K10" + hash + "::abcdef.0123456789abcdef": {hash, "", "abcdef.0123456789abcdef"},
		"K10" + hash + "::server:secret":           {hash, "server", "secret"},
		"K10" + hash + "::node:with:colon\n":       {hash, "node", "with:colon"},
		"abcdef.0123456789abcdef":                  {"", "", "abcdef.0123456789abcdef"},
		"server:secret":                            {"", "server", "secret"},
		"just a password":                          {"", "", "just a password"},
		"K10 as a password":                        {"", "", "K10 as a password"},
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%q: got %+v, %v", text, got, err)
		}
	}
}

func TestOnlyTheServerTokenLetsAServerJoin(t *testing.T) {
	for text, want := range map[string]bool{
		"K10" + hash + "::server:secret":           true,
		"just a password":                          true,
		"K10" + hash + "::node:secret":             false,
		"K10" + hash + "::abcdef.0123456789abcdef": false,
		"abcdef.0123456789abcdef":                  false,
	} {
		if got, err := Parse(text); err != nil || got.JoinsServers() != want {
			t.Errorf("%q: got %v, %v", text, got.JoinsServers(), err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"", " \n", "K10::server:secret", "K10" + hash[1:] + "::server:secret", "K10" + strings.ToUpper(hash) + "::server:secret",
		"K10" + hash + "::", "K10" + hash + "::nouser", "K10" + hash + "::server:", "K10" + hash + "::ABCDEF.0123456789abcdef",
	} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%q was accepted as %+v", text, got)
		}
	}
}

func TestFormatIsWhatParseReads(t *testing.T) {
	text := Format(nil, "server:secret")
	if text != "K10"+hash+"::server:secret" {
		t.Errorf("got %q", text)
	}
	if got, err := Parse(text); err != nil || got.CAHash != HashCA(nil) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func newServer(t *testing.T) layout.Data {
	t.Helper()
	data := layout.Data(t.TempDir())
	if err := layout.WriteFile(data.ServerCA(), []byte("a CA"), 0o644); err != nil {
		t.Fatal(err)
	}
	return data
}

func TestTheServerKeepsTheTokenItGenerated(t *testing.T) {
	data := newServer(t)
	first, err := EnsureServerFiles(data, "", "")
	if err != nil || len(first) != 32 {
		t.Fatalf("got %q, %v", first, err)
	}
	second, err := EnsureServerFiles(data, "", "")
	if err != nil || second != first {
		t.Errorf("got %q then %q, %v", first, second, err)
	}
	content, err := os.ReadFile(data.Server("node-token"))
	if err != nil || strings.TrimSpace(string(content)) != Format([]byte("a CA"), "server:"+first) {
		t.Errorf("node-token: got %q, %v", content, err)
	}
	info, err := os.Stat(data.Server("token"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("token: got %v, %v", info.Mode(), err)
	}
}

func TestAnotherTokenThanTheServersOwnIsRefused(t *testing.T) {
	data := newServer(t)
	if _, err := EnsureServerFiles(data, "one", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := EnsureServerFiles(data, Format([]byte("a CA"), "server:one"), ""); err != nil {
		t.Errorf("the same token in its other form: %v", err)
	}
	if _, err := EnsureServerFiles(data, "two", ""); err == nil {
		t.Error("another token was accepted")
	}
}

func TestAnAgentTokenIsWhatAgentsAreGiven(t *testing.T) {
	data := newServer(t)
	if _, err := EnsureServerFiles(data, "one", `comma, and "quote"`); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(data.Server("node-token"))
	if err != nil || strings.Contains(string(content), "::server:") {
		t.Errorf("node-token: got %q, %v", content, err)
	}
	file, err := os.Open(data.Credential("passwd.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil || len(rows) != 2 || rows[1][0] != `comma, and "quote"` || rows[1][3] != BootstrapGroup {
		t.Errorf("passwd.csv: got %q, %v", rows, err)
	}
}
