// Package token knows K3s's join tokens: their text form, the files the server
// keeps them in, and the command that mints short-lived ones.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"orch.dev/k3s-standin/internal/layout"
)

// BootstrapGroup is the group that a joining node belongs to until it has a
// certificate. K3s gives its own bootstrap tokens the same one.
const BootstrapGroup = "system:bootstrappers:k3s:default-node-token"

const securePrefix = "K10"

var (
	secureForm    = regexp.MustCompile(`^K10([0-9a-f]{64})::(.+)$`)
	bootstrapForm = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)
)

// Token is a parsed join token.
type Token struct {
	// CAHash is the hex SHA-256 of the cluster's CA in PEM; empty in the short
	// form, which cannot verify the server.
	CAHash string
	// User is empty where the credentials name none.
	User string
	// Bearer is what the API server accepts: a bootstrap token `id.secret`, or
	// the password of the server or agent token.
	Bearer string
}

// Parse reads the secure form K10<hash>::<credentials> and the short form
// <credentials>, where credentials are `id.secret`, `user:password` or, in the
// short form only, a bare password.
func Parse(text string) (Token, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return Token{}, errors.New("the token is empty")
	}
	var t Token
	credentials := text
	if strings.HasPrefix(text, securePrefix) && strings.Contains(text, "::") {
		parts := secureForm.FindStringSubmatch(text)
		if parts == nil {
			return Token{}, errors.New("malformed token: expected K10<sha256 of the CA>::<credentials>")
		}
		t.CAHash, credentials = parts[1], parts[2]
	}
	switch user, password, hasUser := strings.Cut(credentials, ":"); {
	case bootstrapForm.MatchString(credentials):
		t.Bearer = credentials
	case hasUser && user != "" && password != "":
		t.User, t.Bearer = user, password
	case !hasUser && t.CAHash == "":
		t.Bearer = credentials
	default:
		return Token{}, errors.New("malformed token: the part after :: is neither id.secret nor user:password")
	}
	return t, nil
}

// JoinsServers tells whether a token may be the server token, the only one that
// lets a server join: an agent's and a bootstrap token say themselves that they
// are none.
func (t Token) JoinsServers() bool {
	return t.User == "server" || (t.User == "" && !bootstrapForm.MatchString(t.Bearer))
}

// Format returns the secure form for a CA and credentials.
func Format(ca []byte, credentials string) string {
	return securePrefix + HashCA(ca) + "::" + credentials
}

// HashCA returns the hex SHA-256 of a CA in PEM.
func HashCA(ca []byte) string {
	sum := sha256.Sum256(ca)
	return hex.EncodeToString(sum[:])
}

// EnsureServerFiles settles the server's own tokens at start and writes their
// files: server/token, server/node-token (what agents may be given) and the
// password list of the API server. wanted and wantedAgent are what the settings
// say, empty for "keep or generate". It returns the server's password.
func EnsureServerFiles(data layout.Data, wanted, wantedAgent string) (string, error) {
	ca, err := os.ReadFile(data.ServerCA())
	if err != nil {
		return "", err
	}
	password, err := settle(data.Server("token"), wanted)
	if err != nil {
		return "", err
	}
	if err := layout.WriteFile(data.Server("token"), []byte(Format(ca, "server:"+password)+"\n"), 0o600); err != nil {
		return "", err
	}
	rows := [][]string{{password, "k3s:server", "k3s:server", BootstrapGroup}}
	nodeTokenTarget := "token"
	if wantedAgent != "" {
		agent, err := Parse(wantedAgent)
		if err != nil {
			return "", fmt.Errorf("agent-token: %w", err)
		}
		if err := layout.WriteFile(data.Server("agent-token"), []byte(Format(ca, "node:"+agent.Bearer)+"\n"), 0o600); err != nil {
			return "", err
		}
		rows = append(rows, []string{agent.Bearer, "k3s:node", "k3s:node", BootstrapGroup})
		nodeTokenTarget = "agent-token"
	}
	if err := replaceLink(data.Server("node-token"), nodeTokenTarget); err != nil {
		return "", err
	}
	var passwords strings.Builder
	if err := csv.NewWriter(&passwords).WriteAll(rows); err != nil {
		return "", err
	}
	return password, layout.WriteFile(data.Credential("passwd.csv"), []byte(passwords.String()), 0o600)
}

func settle(file, wanted string) (string, error) {
	var known Token
	content, err := os.ReadFile(file)
	switch {
	case err == nil:
		if known, err = Parse(string(content)); err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
	case !os.IsNotExist(err):
		return "", err
	}
	if wanted == "" {
		if known.Bearer != "" {
			return known.Bearer, nil
		}
		random := make([]byte, 16)
		if _, err := rand.Read(random); err != nil {
			return "", err
		}
		return hex.EncodeToString(random), nil
	}
	token, err := Parse(wanted)
	if err != nil {
		return "", err
	}
	if known.Bearer != "" && known.Bearer != token.Bearer {
		return "", fmt.Errorf("the token given is not the one this server was created with; remove it from the settings or restore the one in %s", file)
	}
	return token.Bearer, nil
}

func replaceLink(path, target string) error {
	if current, err := os.Readlink(path); err == nil && current == target {
		return nil
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Symlink(target, path)
}
