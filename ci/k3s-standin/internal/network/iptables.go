package network

import (
	"fmt"
	"os/exec"
	"strings"
)

// The chains' prefix is one that K3s's removal script clears away.
const (
	masqueradeChain = "CNI-STANDIN-MASQ"
	forwardChain    = "CNI-STANDIN-FORWARD"
)

// ensureRules masquerades what this node's pods send out of the cluster, and
// lets pods' packets through where the default is to drop forwarded ones.
func ensureRules(clusterCIDR, own string) error {
	for _, rules := range []struct {
		table, from, chain string
		rules              [][]string
	}{
		{"nat", "POSTROUTING", masqueradeChain, [][]string{
			{"-d", clusterCIDR, "-j", "RETURN"},
			{"-d", "224.0.0.0/4", "-j", "RETURN"},
			{"-s", own, "-j", "MASQUERADE", "--random-fully"},
		}},
		{"filter", "FORWARD", forwardChain, [][]string{
			{"-s", clusterCIDR, "-j", "ACCEPT"},
			{"-d", clusterCIDR, "-j", "ACCEPT"},
		}},
	} {
		// Fails when the chain is there already.
		_ = iptables(rules.table, "-N", rules.chain)
		for _, rule := range rules.rules {
			if err := ensureRule(rules.table, rules.chain, rule); err != nil {
				return err
			}
		}
		if err := ensureRule(rules.table, rules.from, []string{"-j", rules.chain}); err != nil {
			return err
		}
	}
	return nil
}

func ensureRule(table, chain string, rule []string) error {
	if iptables(table, append([]string{"-C", chain}, rule...)...) == nil {
		return nil
	}
	return iptables(table, append([]string{"-A", chain}, rule...)...)
}

func iptables(table string, args ...string) error {
	args = append([]string{"--wait", "--table", table}, args...)
	if output, err := exec.Command("iptables", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
