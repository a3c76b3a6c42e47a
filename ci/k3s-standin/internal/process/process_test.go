package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shell is a child that runs a script.
func shell(name, script string) Spec {
	return Spec{Name: name, Path: "/bin/sh", Args: []string{"-c", script}}
}

// waitLines waits until a file has n lines and returns them.
func waitLines(t *testing.T, path string, n int) []string {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		content, err := os.ReadFile(path)
		if lines := strings.Fields(string(content)); err == nil && len(lines) >= n {
			return lines
		}
	}
	t.Fatalf("%s did not reach %d lines", path, n)
	return nil
}

func TestChildrenStopInReverseOrder(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	var group Group
	for i, name := range []string{"first", "second", "third"} {
		group.Start(shell(name, `trap "echo stop-`+name+` >>`+log+`; exit" TERM; echo start-`+name+` >>`+log+`; while :; do sleep 0.02; done`))
		waitLines(t, log, i+1)
	}
	group.Stop()
	want := "start-first start-second start-third stop-third stop-second stop-first"
	if got := strings.Join(waitLines(t, log, 6), " "); got != want {
		t.Errorf("got %s", got)
	}
}

func TestAChildThatEndsIsStartedAgain(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	var group Group
	group.Start(shell("short", "echo run >>"+log))
	waitLines(t, log, 2)
	group.Stop()
}

func TestAProgramThatIsMissingDoesNotBlockStop(t *testing.T) {
	var group Group
	group.Start(Spec{Name: "missing", Path: "/nonexistent"})
	group.Stop()
}

func TestChildrenSeeNoSecrets(t *testing.T) {
	t.Setenv("K3S_TOKEN", "secret")
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	t.Setenv("STANDIN_TEST", "kept")
	all := strings.Join(environment(), "\n")
	if strings.Contains(all, "K3S_TOKEN") || strings.Contains(all, "NOTIFY_SOCKET") || !strings.Contains(all, "STANDIN_TEST=kept") {
		t.Error(all)
	}
}
