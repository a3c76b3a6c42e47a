//! What a failure's own words suggest to look at: ports, disks, control groups, the clock, names.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;
use orch_contract::Evidence;

use super::{LINES, Surroundings, evidence};
use crate::host::cgroups::{controllers, missing_controllers};
use crate::host::listeners::{Listener, parse_listeners};
use crate::host::mounts::parse_mounts;
use crate::system::Invocation;

/// A file system that is fuller than this is worth a line, whatever failed.
const FULL_PERCENT: u64 = 95;
/// File systems that are no disks.
const NO_DISKS: [&str; 14] = [
    "autofs", "bpf", "cgroup", "cgroup2", "debugfs", "devpts", "devtmpfs", "fusectl", "mqueue",
    "nsfs", "proc", "ramfs", "sysfs", "tracefs",
];
const RESOLVERS: &str = "/etc/resolv.conf";

impl Surroundings<'_> {
    /// `text` is everything that is known of the failure.
    pub(super) async fn causes(&self, text: &str) -> Vec<Evidence> {
        let lower = text.to_lowercase();
        let speaks_of = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let mut found = Vec::new();
        if speaks_of(&["address already in use", "is taken by"]) {
            found.push(evidence("who listens", self.listeners(text).await));
        }
        let is_about_space = speaks_of(&["no space left", "mib are free", "disk is full"]);
        found.push(evidence(
            "fullest file system",
            self.fullest(is_about_space).into_iter().collect(),
        ));
        if speaks_of(&["cgroup"]) {
            found.push(evidence("control groups", self.control_groups()));
        }
        if speaks_of(&["x509", "certificate", "clock"]) {
            found.push(evidence("clock", self.clock()));
        }
        if speaks_of(&[
            "dns error",
            "failed to lookup address",
            "no such host",
            "name or service not known",
            "temporary failure in name resolution",
            "server misbehaving",
        ]) {
            found.push(evidence("name resolution", self.resolution(text)));
        }
        found
    }

    /// Who has the ports that the failure speaks of.
    async fn listeners(&self, text: &str) -> Vec<String> {
        let invocation = Invocation::new("ss", ["-H", "-l", "-t", "-n", "-p"]);
        let shown = self.output(invocation).await;
        let ports = ports_in(text);
        let mut lines: Vec<String> = parse_listeners(&shown)
            .iter()
            .filter(|listener| ports.contains(&listener.port))
            .map(|listener| self.describe(listener))
            .collect();
        lines.dedup();
        lines
    }

    fn describe(&self, listener: &Listener) -> String {
        let Listener { port, owner } = listener;
        let Some((name, process)) = owner else {
            return format!("port {port}: a program that cannot be seen from here");
        };
        let link = format!("/proc/{process}/exe");
        let program = self.context.system.files.link_target(Path::new(&link));
        match program {
            Ok(Some(program)) => {
                format!(
                    "port {port}: {name}, process {process}, {}",
                    program.display()
                )
            }
            _ => format!("port {port}: {name}, process {process}"),
        }
    }

    /// The fullest file system, where it matters.
    fn fullest(&self, in_any_case: bool) -> Option<String> {
        let files = self.context.system.files;
        let mounts = files.read_text(Path::new("/proc/self/mountinfo")).ok()??;
        let (percent, free, total, point) = parse_mounts(&mounts)
            .into_iter()
            .filter(|mount| !NO_DISKS.contains(&mount.kind.as_str()))
            .filter_map(|mount| {
                let space = files.space(&mount.point).ok()?;
                let used = space.total.saturating_sub(space.free);
                // A read-only image is always full.
                let percent = used.saturating_mul(100).checked_div(space.total)?;
                (space.free > 0 || mount.kind != "squashfs").then_some((
                    percent,
                    space.free,
                    space.total,
                    mount.point,
                ))
            })
            // One disk may be mounted at many places; the shortest names it best.
            .max_by_key(|(percent, _, _, point)| (*percent, Reverse(point.as_os_str().len())))?;
        (in_any_case || percent >= FULL_PERCENT).then(|| {
            format!(
                "{}: {percent} % used, {} of {} MiB free",
                point.display(),
                free >> 20,
                total >> 20
            )
        })
    }

    fn control_groups(&self) -> Vec<String> {
        let files = self.context.system.files;
        let text = |path: &str| files.read_text(Path::new(path)).ok().flatten();
        let v2 = text("/sys/fs/cgroup/cgroup.controllers");
        let v1 = text("/proc/cgroups").unwrap_or_default();
        let (version, enabled) = controllers(v2.as_deref(), &v1);
        let missing = missing_controllers(v2.as_deref(), &v1);
        vec![
            format!("version {version}, enabled: {}", enabled.join(", ")),
            match missing.is_empty() {
                true => "nothing that the kubelet needs is missing".to_owned(),
                false => format!("missing: {}", missing.join(", ")),
            },
        ]
    }

    fn clock(&self) -> Vec<String> {
        let synchronised = match crate::facts::is_synchronised(self.context.system.files) {
            Some(true) => "systemd-timesyncd says that it is synchronised",
            Some(false) => "systemd-timesyncd says that it is not synchronised",
            None => "whether it is synchronised is not known",
        };
        vec![format!(
            "this node says {:.0}; {synchronised}",
            Timestamp::now()
        )]
    }

    /// Which name was asked for, and whom.
    fn resolution(&self, text: &str) -> Vec<String> {
        let files = self.context.system.files;
        let names: BTreeSet<&str> = names_in(text).collect();
        let mut lines: Vec<String> = names
            .into_iter()
            .take(LINES)
            .map(|name| format!("no address was found for {name}"))
            .collect();
        let text = files.read_text(Path::new(RESOLVERS)).ok().flatten();
        let text = text.unwrap_or_default();
        let resolvers: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nameserver"))
            .map(str::trim)
            .collect();
        lines.push(match resolvers.is_empty() {
            true => format!("{RESOLVERS} names no resolver"),
            false => format!("{RESOLVERS} names the resolvers {}", resolvers.join(", ")),
        });
        lines
    }
}

/// Numbers after a colon or the word `port`, in lines that speak of a port that is taken.
fn ports_in(text: &str) -> BTreeSet<u16> {
    let about_ports = text.lines().filter(|line| {
        let line = line.to_lowercase();
        line.contains("address already in use") || line.contains("is taken by")
    });
    about_ports
        .flat_map(|line| {
            line.split([' ', ':', ',', ';', '"'])
                .filter_map(|word| word.parse::<u16>().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Hosts of URLs, and what Go's resolver was asked (`lookup <name> on <resolver>`).
fn names_in(text: &str) -> impl Iterator<Item = &str> {
    let urls = text.split("://").skip(1).map(|rest| {
        let end = rest.find(['/', ' ', '"', '\'', '\n', ')']);
        let authority = &rest[..end.unwrap_or(rest.len())];
        let host = authority.rsplit('@').next().unwrap_or(authority);
        host.split(':').next().unwrap_or(host)
    });
    let lookups = text
        .split("lookup ")
        .skip(1)
        .filter_map(|rest| rest.split([' ', ':', '\n', '"']).next());
    urls.chain(lookups)
        .filter(|name| name.contains('.') && name.parse::<std::net::IpAddr>().is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_what_speaks_of_them() {
        let text = "listen tcp 127.0.0.1:6444: bind: address already in use\nport 10250 is taken by x (process 7); stop it\nat 8080";
        let ports: Vec<u16> = ports_in(text).into_iter().collect();
        assert!(ports.contains(&6444) && ports.contains(&10250), "{ports:?}");
        assert!(!ports.contains(&8080), "{ports:?}");
    }

    #[test]
    fn names_are_read_from_urls_and_lookups() {
        let text = "cannot download https://u:p@github.com/k3s-io\ndial tcp: lookup example.org on 127.0.0.53:53: no such host, https://10.0.0.1:6443/x";
        let names: Vec<&str> = names_in(text).collect();
        assert_eq!(names, ["github.com", "example.org"]);
    }
}
