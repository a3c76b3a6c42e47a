// Package snapshot is `k3s etcd-snapshot`: files of the datastore's state, kept
// and named as K3s does. Restoring one is a server's cluster-reset.
package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"

	"orch.dev/k3s-standin/internal/bootstrap"
	"orch.dev/k3s-standin/internal/config"
)

const (
	usage   = "usage: k3s etcd-snapshot save|list|delete NAME...|prune"
	timeout = 2 * time.Minute
)

// Command runs `k3s etcd-snapshot save|list|ls|delete|prune`. What it prints on
// stdout is the list only.
func Command(args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	options, names, err := config.LoadSnapshot(args[1:])
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if !options.DataDir.ManagedEtcd() {
		return errors.New("Error: see server log for details: " + bootstrap.Disabled)
	}
	if args[0] != "delete" && len(names) > 0 {
		return fmt.Errorf("this command takes options only, got %q", names[0])
	}
	switch args[0] {
	case "save":
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		name, err := save(ctx, options)
		if err != nil {
			return fmt.Errorf("failed to save a snapshot: %w", err)
		}
		logrus.Infof("Snapshot %s saved.", name)
		return nil
	case "list", "ls":
		files, err := list(options.Dir)
		if err != nil {
			return err
		}
		return show(os.Stdout, options, files)
	case "delete":
		if len(names) == 0 {
			return errors.New("no snapshots given for removal")
		}
		return remove(options.Dir, names)
	case "prune":
		return prune(options)
	}
	return fmt.Errorf("the K3s stand-in has no command `etcd-snapshot %s`; %s", args[0], usage)
}

func show(out io.Writer, options *config.Snapshot, files []file) error {
	switch options.Output {
	case "json":
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "    ")
		return encoder.Encode(describe(files, options.NodeName))
	case "", "table":
		table := tabwriter.NewWriter(out, 0, 0, 1, ' ', 0)
		fmt.Fprint(table, "Name\tLocation\tSize\tCreated\n")
		for _, f := range files {
			fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", f.name, f.location(), f.size, f.created.Format(time.RFC3339))
		}
		return table.Flush()
	}
	return errors.New("invalid output format: " + options.Output)
}

func remove(dir string, names []string) error {
	files, err := list(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		found := false
		for _, f := range files {
			if f.name != name {
				continue
			}
			found = true
			if err := os.Remove(f.path); err != nil {
				return err
			}
			logrus.Infof("Snapshot %s deleted.", name)
		}
		if !found {
			logrus.Warnf("Snapshot %s not found.", name)
		}
	}
	return nil
}

// prune removes this node's oldest snapshots under the name in the settings.
func prune(options *config.Snapshot) error {
	if options.Retention < 1 {
		return nil
	}
	files, err := list(options.Dir)
	if err != nil {
		return err
	}
	for _, f := range superfluous(files, options.Name+"-"+options.NodeName+"-", options.Retention) {
		if err := os.Remove(f.path); err != nil {
			return err
		}
		logrus.Infof("Snapshot %s deleted.", f.name)
	}
	return nil
}
