//! All nodes at once, up to a limit; servers first, because agents wait for them.
//!
//! When every server has failed, the agents' waits end at once. Dropping the future closes every connection, and with it every
//! `orch-provision` that runs: each may be stopped at any moment and goes on when it is run again.

use std::sync::Arc;

use orch_contract::{Outcome, Role};
use tokio::sync::{Semaphore, watch};

use super::node::Node;
use super::{Delivery, Host, NodeError, NodeReport, Options, Watcher};

/// What every node would have changed. Nothing is changed.
pub async fn plan(
    hosts: &[Host],
    delivery: &Delivery,
    options: &Options,
    watcher: &dyn Watcher,
) -> Vec<NodeReport> {
    each(hosts, options, |host| {
        Node::new(host, options, watcher).plan(delivery)
    })
    .await
}

/// Makes every node what its configuration says.
pub async fn up(
    hosts: &[Host],
    delivery: &Delivery,
    options: &Options,
    watcher: &dyn Watcher,
) -> Vec<NodeReport> {
    let servers = hosts.iter().filter(|host| host.role == Role::Server);
    let servers = servers.count();
    // The names of the servers that failed. Agents join through any that did not.
    let (failed, failure) = watch::channel(Vec::<String>::new());
    let failed = Arc::new(failed);
    each(hosts, options, |host| {
        let (failed, mut failure) = (Arc::clone(&failed), failure.clone());
        async move {
            let work = Node::new(host, options, watcher).up(delivery);
            if host.role == Role::Server {
                let report = work.await;
                if report.outcome == Outcome::Failed {
                    failed.send_modify(|failed| failed.push(host.name.clone()));
                }
                return report;
            }
            tokio::select! {
                report = work => report,
                Ok(failed) = failure.wait_for(|failed| servers > 0 && failed.len() == servers) => {
                    NodeReport::new(&host.name, host.role).failed(NodeError::NoServer {
                        node: host.name.clone(),
                        servers: failed.join(", "),
                    })
                }
            }
        }
    })
    .await
}

/// Brings every node its keys and nothing else. Who runs there reads them anew whenever they are used.
pub async fn renew_keys(
    hosts: &[Host],
    options: &Options,
    watcher: &dyn Watcher,
) -> Vec<NodeReport> {
    each(hosts, options, |host| {
        Node::new(host, options, watcher).renew_keys()
    })
    .await
}

/// Removes K3s and orch from every node that can be reached.
pub async fn reset(
    hosts: &[Host],
    delivery: &Delivery,
    options: &Options,
    watcher: &dyn Watcher,
) -> Vec<NodeReport> {
    each(hosts, options, |host| {
        Node::new(host, options, watcher).reset(delivery)
    })
    .await
}

/// Does the work for every host, servers first, and keeps the order of `hosts` in the answer.
pub(super) async fn each<'a, T, F>(
    hosts: &'a [Host],
    options: &Options,
    work: impl Fn(&'a Host) -> F,
) -> Vec<T>
where
    F: Future<Output = T> + 'a,
{
    // Servers that stood still have a quorum only together: each of them waits until enough of the others run.
    let servers = hosts.iter().filter(|host| host.role == Role::Server);
    let turns = Semaphore::new(options.parallel.max(servers.count()).max(1));
    let mut order: Vec<usize> = (0..hosts.len()).collect();
    order.sort_by_key(|index| hosts[*index].role != Role::Server);
    let running = order.into_iter().map(|index| {
        let (turns, work) = (&turns, &work);
        async move {
            // Never closed; without a turn the work would only be less orderly.
            let _turn = turns.acquire().await;
            (index, work(&hosts[index]).await)
        }
    });
    let mut reports = futures::future::join_all(running).await;
    reports.sort_by_key(|(index, _)| *index);
    reports.into_iter().map(|(_, report)| report).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn hosts(names: &[(&str, Role)]) -> Vec<Host> {
        names
            .iter()
            .map(|(name, role)| Host {
                name: (*name).to_owned(),
                role: *role,
                folder: "/none".into(),
                wanted: crate::remote::Wanted::default(),
            })
            .collect()
    }

    #[tokio::test]
    async fn no_server_waits_for_another_to_be_ready() {
        let hosts = hosts(&["s", "t", "u"].map(|name| (name, Role::Server)));
        let options = Options {
            parallel: 1,
            is_new_cluster: false,
            sudo_password: None,
        };
        let all_run = tokio::sync::Barrier::new(3);
        let reports = each(&hosts, &options, |host| {
            let all_run = &all_run;
            async move {
                all_run.wait().await;
                NodeReport::new(&host.name, host.role)
            }
        });
        assert_eq!(reports.await.len(), 3);
    }

    #[tokio::test]
    async fn servers_go_first_and_no_more_at_once_than_the_limit_says() {
        let hosts = hosts(&[
            ("a", Role::Agent),
            ("b", Role::Agent),
            ("s", Role::Server),
            ("c", Role::Agent),
        ]);
        let options = Options {
            parallel: 2,
            is_new_cluster: false,
            sudo_password: None,
        };
        let seen = Mutex::new((0, 0, Vec::new()));
        let reports = each(&hosts, &options, |host| {
            let seen = &seen;
            async move {
                {
                    let mut seen = seen.lock().unwrap();
                    seen.0 += 1;
                    seen.1 = seen.1.max(seen.0);
                    seen.2.push(host.name.clone());
                }
                tokio::task::yield_now().await;
                seen.lock().unwrap().0 -= 1;
                NodeReport::new(&host.name, host.role)
            }
        })
        .await;
        let names: Vec<_> = reports.iter().map(|report| report.node.as_str()).collect();
        assert_eq!(names, ["a", "b", "s", "c"]);
        let seen = seen.into_inner().unwrap();
        assert_eq!(seen.1, 2);
        assert_eq!(seen.2[0], "s");
    }
}
