package snapshot

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orch.dev/k3s-standin/internal/config"
	"orch.dev/k3s-standin/internal/layout"
)

// folder holds files of a size, each a second younger than the one before.
func folder(t *testing.T, size int, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i, name := range names {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		when := time.Unix(1700000000+int64(i), 0)
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTheListIsK3ss(t *testing.T) {
	dir := folder(t, 2080, "on-demand-First-2", "on-demand-first-1", "on-demand-first-3.part")
	files, err := list(dir)
	if err != nil || len(files) != 2 {
		t.Fatalf("got %v, %v", files, err)
	}
	options := &config.Snapshot{NodeName: "first", Output: "json"}
	var out bytes.Buffer
	if err := show(&out, options, files); err != nil {
		t.Fatal(err)
	}
	var printed struct {
		Kind  string
		Items []struct {
			Spec   struct{ SnapshotName, NodeName, Location string }
			Status struct {
				Size, CreationTime string
				ReadyToUse         bool
			}
		}
	}
	if err := json.Unmarshal(out.Bytes(), &printed); err != nil || len(printed.Items) != 2 {
		t.Fatalf("got %s, %v", &out, err)
	}
	first := printed.Items[0]
	if printed.Kind != "ETCDSnapshotFileList" || first.Spec.SnapshotName != "on-demand-First-2" || first.Spec.NodeName != "first" ||
		first.Spec.Location != "file://"+dir+"/on-demand-First-2" || first.Status.Size != "2080" ||
		first.Status.CreationTime != "2023-11-14T22:13:20Z" || !first.Status.ReadyToUse {
		t.Errorf("got %s", &out)
	}
	out.Reset()
	options.Output = ""
	if err := show(&out, options, files); err != nil || !strings.HasPrefix(out.String(), "Name") || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("got %s, %v", &out, err)
	}
	options.Output = "xml"
	if show(&out, options, files) == nil {
		t.Error("an unknown format was accepted")
	}
}

func TestAFolderThatIsNotThereHoldsNone(t *testing.T) {
	var out bytes.Buffer
	files, err := list("/nonexistent")
	if err == nil {
		err = show(&out, &config.Snapshot{Output: "json"}, files)
	}
	if err != nil || !strings.Contains(out.String(), `"items": []`) {
		t.Errorf("got %s, %v", &out, err)
	}
}

func TestPruneKeepsTheLastOnesOfItsName(t *testing.T) {
	dir := folder(t, 1, "on-demand-a-1", "other-a-1", "on-demand-a-2", "on-demand-b-1", "on-demand-a-3")
	if err := prune(&config.Snapshot{Name: "on-demand", NodeName: "a", Dir: dir, Retention: 2}); err != nil {
		t.Fatal(err)
	}
	files, err := list(dir)
	if err != nil || len(files) != 4 || files[0].name != "other-a-1" {
		t.Errorf("got %v, %v", files, err)
	}
}

func TestDeleteTakesNamesAndNoPaths(t *testing.T) {
	dir := folder(t, 1, "one", "two")
	outside := filepath.Join(filepath.Dir(dir), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := remove(dir, []string{"one", "missing", "../outside"}); err != nil {
		t.Fatal(err)
	}
	files, err := list(dir)
	if err != nil || len(files) != 1 || files[0].name != "two" {
		t.Errorf("got %v, %v", files, err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

func TestHalfAStreamIsNoSnapshot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	if err := write(path, strings.NewReader(strings.Repeat("x", 1000))); err == nil {
		t.Error("it was kept")
	}
	if err := write(path, strings.NewReader(strings.Repeat("x", 1024+32))); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(path + "*"); len(left) != 1 || left[0] != path {
		t.Errorf("left %s", left)
	}
}

func TestWhereK3sRunsOnSQLiteThereAreNone(t *testing.T) {
	data := layout.Data(t.TempDir())
	for _, verb := range []string{"save", "ls", "delete", "prune"} {
		err := Command([]string{verb, "--config=/nonexistent", "--data-dir", string(data)})
		if err == nil || !strings.Contains(err.Error(), "etcd datastore disabled") {
			t.Errorf("%s: got %v", verb, err)
		}
	}
}
