//! A [`ClusterStatus`] as aligned text.

use super::{ClusterStatus, ImageVerdict};

/// Digests are told apart by their first digits.
const SHORT_DIGEST: usize = "sha256:".len() + 12;

/// Sections of aligned columns, those without rows left out.
pub fn table(status: &ClusterStatus) -> String {
    let nodes = status.nodes.iter().map(|node| {
        let mut state = vec![if node.ready { "Ready" } else { "NotReady" }];
        if !node.schedulable {
            state.push("cordoned");
        }
        let mut version = node.version.clone();
        if node.stand_in {
            version.push_str(" (stand-in for K3s)");
        }
        let roles = if node.roles.is_empty() {
            "agent".to_owned()
        } else {
            node.roles.join(",")
        };
        vec![
            node.name.clone(),
            roles,
            state.join(", "),
            or_dash(node.address.clone()),
            version,
        ]
    });
    let workloads = status.workloads.iter().map(|row| {
        vec![
            row.workload.to_string(),
            row.workload.namespace.clone(),
            format!("{}/{}", row.ready, row.desired),
            row.waiting.clone().unwrap_or_default(),
        ]
    });
    let autoscalers = status.autoscalers.iter().map(|row| {
        let per_cent =
            |value: Option<i32>| value.map_or("?".to_owned(), |value| format!("{value} %"));
        vec![
            row.name.clone(),
            row.namespace.clone(),
            format!("{} of {}", per_cent(row.cpu), per_cent(row.target)),
            format!("{} ({} to {})", row.replicas, row.minimum, row.maximum),
        ]
    });
    let endpoints = status.endpoints.iter().map(|row| {
        let ports: Vec<_> = row
            .ports
            .iter()
            .map(|port| match port.node {
                Some(node) => format!("{}:{node}", port.port),
                None => port.port.to_string(),
            })
            .collect();
        vec![
            row.service.clone(),
            row.namespace.clone(),
            row.kind.clone(),
            or_dash(row.address.clone()),
            or_dash((!ports.is_empty()).then(|| ports.join(","))),
            row.ready.to_string(),
        ]
    });
    let images = status.images.iter().map(|row| {
        let verdict = match row.verdict {
            ImageVerdict::Matches => "as pinned",
            ImageVerdict::Differs => "DIFFERS",
            ImageVerdict::NotRunning => "not running",
            ImageVerdict::Unknown => "unknown",
            ImageVerdict::Unpinned => "not pinned",
        };
        let running: Vec<_> = row.running.iter().map(|digest| short(digest)).collect();
        vec![
            row.workload.to_string(),
            row.container.clone(),
            or_dash(row.pinned.as_deref().map(short)),
            or_dash((!running.is_empty()).then(|| running.join(","))),
            verdict.to_owned(),
        ]
    });
    [
        section(&["NODE", "ROLES", "STATE", "ADDRESS", "VERSION"], nodes),
        section(
            &["WORKLOAD", "NAMESPACE", "READY", "WAITING FOR"],
            workloads,
        ),
        section(&["AUTOSCALER", "NAMESPACE", "CPU", "REPLICAS"], autoscalers),
        section(
            &[
                "SERVICE",
                "NAMESPACE",
                "TYPE",
                "ADDRESS",
                "PORTS",
                "READY PODS",
            ],
            endpoints,
        ),
        section(
            &["IMAGE OF", "CONTAINER", "PINNED", "RUNNING", "VERDICT"],
            images,
        ),
    ]
    .into_iter()
    .filter(|text| !text.is_empty())
    .collect::<Vec<_>>()
    .join("\n")
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn short(digest: &str) -> String {
    digest.chars().take(SHORT_DIGEST).collect()
}

fn section(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines: Vec<Vec<String>> = rows.collect();
    if lines.is_empty() {
        return String::new();
    }
    lines.insert(0, header.iter().map(ToString::to_string).collect());
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<_> = line
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::super::rollout::{Workload, WorkloadKind};
    use super::super::{
        AutoscalerStatus, EndpointStatus, ImageStatus, NodeStatus, PortStatus, WorkloadStatus,
    };
    use super::*;

    #[test]
    fn sections_are_aligned_and_empty_ones_are_left_out() {
        let workload = Workload::new(WorkloadKind::StatefulSet, "microservices", "rabbitmq");
        let status = ClusterStatus {
            nodes: vec![
                NodeStatus {
                    name: "master".into(),
                    roles: vec!["control-plane".into(), "master".into()],
                    ready: true,
                    schedulable: true,
                    version: "v1.34.2+k3s1".into(),
                    address: Some("192.168.56.10".into()),
                    stand_in: false,
                },
                NodeStatus {
                    name: "agent".into(),
                    roles: Vec::new(),
                    ready: false,
                    schedulable: false,
                    version: "v1.34.2".into(),
                    address: None,
                    stand_in: true,
                },
            ],
            workloads: vec![WorkloadStatus {
                workload: workload.clone(),
                ready: 0,
                desired: 1,
                waiting: Some("0 of 1 ready".into()),
            }],
            autoscalers: vec![AutoscalerStatus {
                namespace: "microservices".into(),
                name: "api".into(),
                scales: "Deployment api".into(),
                cpu: None,
                target: Some(60),
                replicas: 1,
                minimum: 1,
                maximum: 3,
            }],
            endpoints: vec![EndpointStatus {
                namespace: "microservices".into(),
                service: "api".into(),
                kind: "NodePort".into(),
                address: Some("10.43.0.7".into()),
                ports: vec![PortStatus {
                    port: 3000,
                    node: Some(30000),
                }],
                ready: 1,
            }],
            images: vec![ImageStatus {
                workload,
                container: "main".into(),
                pinned: Some(format!("sha256:{}", "a".repeat(64))),
                running: Vec::new(),
                verdict: ImageVerdict::NotRunning,
            }],
        };
        insta::assert_snapshot!(table(&status), @r"
        NODE    ROLES                 STATE               ADDRESS        VERSION
        master  control-plane,master  Ready               192.168.56.10  v1.34.2+k3s1
        agent   agent                 NotReady, cordoned  -              v1.34.2 (stand-in for K3s)

        WORKLOAD              NAMESPACE      READY  WAITING FOR
        StatefulSet rabbitmq  microservices  0/1    0 of 1 ready

        AUTOSCALER  NAMESPACE      CPU        REPLICAS
        api         microservices  ? of 60 %  1 (1 to 3)

        SERVICE  NAMESPACE      TYPE      ADDRESS    PORTS       READY PODS
        api      microservices  NodePort  10.43.0.7  3000:30000  1

        IMAGE OF              CONTAINER  PINNED               RUNNING  VERDICT
        StatefulSet rabbitmq  main       sha256:aaaaaaaaaaaa  -        not running
        ");
        assert_eq!(table(&ClusterStatus::default()), "");
    }
}
