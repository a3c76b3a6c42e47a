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
	outputChain     = "CNI-STANDIN-OUTPUT"
)

// ensureRules masquerades what pods send out of the cluster, lets their packets
// through where the default is to drop forwarded ones, and rejects what is
// still addressed to a service after kube-proxy had its turn. The last matters
// right after a boot: the API server dials aggregated APIs before kube-proxy
// runs, and must not take whoever answers beyond the default route for them.
func ensureRules(c CIDRs) error {
	reject := []string{"-d", c.Services, "-j", "REJECT"}
	for _, rules := range []struct {
		table, from, chain string
		rules              [][]string
	}{
		{"filter", "OUTPUT", outputChain, [][]string{reject}},
		{"filter", "FORWARD", forwardChain, [][]string{
			reject,
			{"-s", c.Pods, "-j", "ACCEPT"},
			{"-d", c.Pods, "-j", "ACCEPT"},
		}},
		{"nat", "POSTROUTING", masqueradeChain, [][]string{
			{"-d", c.Pods, "-j", "RETURN"},
			{"-d", "224.0.0.0/4", "-j", "RETURN"},
			{"-s", c.Pods, "-j", "MASQUERADE", "--random-fully"},
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
