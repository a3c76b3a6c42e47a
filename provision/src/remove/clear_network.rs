//! Removes the interfaces, network namespaces and packet filter rules of pods and services.

use async_trait::async_trait;
use orch_contract::{Action, Change, Subject};
use orch_runner::{Check, Step, StepFailure, StepReport};
use serde::Deserialize;

use super::RemoveError;
use crate::host::interfaces::POD_LINKS;
use crate::system::{CommandError, Invocation, System};

/// The addresses that K3s gives pods where it is not told otherwise.
const POD_NETWORK: &str = "10.42.0.0/16";
/// Marks in the names of chains and in rules, in lower case.
const RULE_MARKS: [&str; 3] = ["kube-", "cni-", "flannel"];
const FILTERS: [(&str, &str); 2] = [
    ("iptables-save", "iptables-restore"),
    ("ip6tables-save", "ip6tables-restore"),
];

pub(crate) struct ClearNetwork<'a> {
    pub(crate) system: System<'a>,
}

#[derive(Deserialize)]
struct Link {
    #[serde(default)]
    ifname: String,
    #[serde(default)]
    master: String,
}

#[derive(Deserialize)]
struct Route {
    dst: String,
    /// `unicast` where it is not said.
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Namespace {
    name: String,
}

impl ClearNetwork<'_> {
    async fn output(&self, program: &str, arguments: &[&str]) -> Result<String, CommandError> {
        let invocation = Invocation::new(program, arguments.iter().copied());
        let shown = self.system.commands.run_ok(&invocation).await?;
        Ok(shown.text().to_string())
    }

    /// The pods' ends of their cables first, then the bridges.
    async fn links(&self) -> Result<Vec<String>, CommandError> {
        let shown = self.output("ip", &["-json", "link", "show"]).await?;
        let links: Vec<Link> = serde_json::from_str(&shown).unwrap_or_default();
        let mut found: Vec<String> = links
            .iter()
            .filter(|link| link.master == "cni0")
            .chain(
                links
                    .iter()
                    .filter(|link| POD_LINKS.contains(&link.ifname.as_str())),
            )
            .map(|link| link.ifname.clone())
            .collect();
        found.dedup();
        Ok(found)
    }

    /// Routes to pods, on this node and on others, each as `ip route` names it.
    async fn routes(&self) -> Result<Vec<String>, CommandError> {
        let arguments = ["-json", "route", "show", "root", POD_NETWORK];
        let shown = self.output("ip", &arguments).await?;
        let routes: Vec<Route> = serde_json::from_str(&shown).unwrap_or_default();
        Ok(routes
            .into_iter()
            .map(|route| match route.kind {
                Some(kind) => format!("{kind} {}", route.dst),
                None => route.dst,
            })
            .collect())
    }

    async fn namespaces(&self) -> Result<Vec<String>, CommandError> {
        let shown = self.output("ip", &["-json", "netns", "list"]).await?;
        let namespaces: Vec<Namespace> = serde_json::from_str(&shown).unwrap_or_default();
        Ok(namespaces
            .into_iter()
            .map(|namespace| namespace.name)
            .filter(|name| name.starts_with("cni-"))
            .collect())
    }

    /// The rules of a packet filter and the rules without ours; None if there are none of ours.
    async fn filtered(&self, save: &str) -> Result<Option<String>, CommandError> {
        let rules = match self.output(save, &[]).await {
            Ok(rules) => rules,
            // No packet filter, no rules.
            Err(error) if error.is_missing() => return Ok(None),
            Err(CommandError::Status { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let kept = without_ours(&rules);
        Ok((kept != rules).then_some(kept))
    }

    async fn found(&self) -> Result<Vec<String>, RemoveError> {
        let mut found = self.links().await?;
        found.extend(self.namespaces().await?);
        found.extend(self.routes().await?);
        for (save, _) in FILTERS {
            if self.filtered(save).await?.is_some() {
                found.push(format!("rules in {save}"));
            }
        }
        Ok(found)
    }

    /// Deletes one thing. The kernel takes some away by itself when others go, a moment later, so
    /// that a refusal counts only if it is still there in the end.
    async fn delete(&self, arguments: &str) -> Result<(), CommandError> {
        let invocation = Invocation::new("ip", arguments.split(' '));
        self.system.commands.run(&invocation).await.map(|_| ())
    }

    async fn clear(&self) -> Result<(), RemoveError> {
        for name in self.namespaces().await? {
            self.delete(&format!("netns delete {name}")).await?;
        }
        for name in self.links().await? {
            self.delete(&format!("link delete {name}")).await?;
        }
        for route in self.routes().await? {
            self.delete(&format!("route delete {route}")).await?;
        }
        for (save, restore) in FILTERS {
            if let Some(kept) = self.filtered(save).await? {
                let invocation = Invocation::new(restore, [""; 0]).stdin(kept.into_bytes());
                self.system.commands.run_ok(&invocation).await?;
            }
        }
        let left = self.found().await?;
        if left.is_empty() {
            Ok(())
        } else {
            Err(RemoveError::NetworkLeft { left })
        }
    }
}

/// Takes the chains and rules of Kubernetes, CNI and flannel out of an iptables-save listing.
fn without_ours(rules: &str) -> String {
    rules
        .lines()
        .filter(|line| {
            let line = line.to_lowercase();
            !RULE_MARKS.iter().any(|mark| line.contains(mark))
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

#[async_trait]
impl Step for ClearNetwork<'_> {
    type Output = ();

    fn name(&self) -> &'static str {
        "clear_network"
    }

    fn title(&self) -> String {
        "Remove the pod network".to_owned()
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<()>, StepFailure> {
        let found = self.found().await?;
        let changes = found
            .into_iter()
            .map(|name| Change::new(Subject::Network, name, Action::Remove, "is there"));
        Ok(Check::of(changes.collect(), || ()))
    }

    async fn apply(&self, _: &StepReport<'_>) -> Result<(), StepFailure> {
        Ok(self.clear().await?)
    }

    fn planned(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Machine;

    #[test]
    fn rules_of_others_stay() {
        let rules = "*filter\n:INPUT ACCEPT [1:2]\n:KUBE-FORWARD - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A INPUT -p tcp --dport 22 -j ACCEPT\n-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\nCOMMIT\n";
        assert_eq!(
            without_ours(rules),
            "*filter\n:INPUT ACCEPT [1:2]\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n"
        );
    }

    #[tokio::test]
    async fn pods_cables_go_before_their_bridge() {
        let machine = Machine::fit();
        machine.commands.answer(
            "ip -json link",
            0,
            r#"[{"ifname":"lo"},{"ifname":"cni0"},{"ifname":"veth1","master":"cni0"},{"ifname":"eth0"}]"#,
        );
        machine
            .commands
            .answer("ip -json netns", 0, r#"[{"name":"cni-1"},{"name":"mine"}]"#);
        machine.commands.answer(
            "ip -json route show root 10.42.0.0/16",
            0,
            r#"[{"dst":"10.42.0.0/24","dev":"eth0"},{"type":"unreachable","dst":"10.42.0.0/16"}]"#,
        );
        let step = ClearNetwork {
            system: machine.system(),
        };
        assert_eq!(
            step.found().await.unwrap(),
            [
                "veth1",
                "cni0",
                "cni-1",
                "10.42.0.0/24",
                "unreachable 10.42.0.0/16"
            ]
        );
    }
}
