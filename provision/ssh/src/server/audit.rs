//! Who asked and what came of it, and how a flood of the same becomes one line a minute.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use orch_contract::NodeName;

use super::network::network_of;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuditKind {
    /// A token was handed out.
    Granted,
    /// A server's token was handed out: it never expires, and whoever holds it has the cluster.
    ServerGranted,
    /// The operator was shown this machine's facts.
    Shown,
    /// A request was answered with a reason instead of a token.
    Refused,
    /// Something other than the join was asked for by an authenticated node.
    Denied,
    /// A key or a user name that nobody here has.
    KeyRejected,
    /// The connection ended before anybody had authenticated.
    Unauthenticated,
    /// Not accepted: too many connections at once.
    Busy,
    /// Not accepted: too many failures from there.
    Throttled,
    /// Accepting failed, for instance for want of file descriptors.
    AcceptFailed,
    /// The service's own key files cannot be used.
    KeysUnusable,
    /// A token that is used up or expired was deleted.
    TokenRevoked,
    /// Tokens cannot be looked after; they expire by themselves.
    RevocationFailed,
    /// More of the same from one network, counted instead of told.
    Repeated,
}

impl AuditKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            AuditKind::Granted => "granted",
            AuditKind::ServerGranted => "server_granted",
            AuditKind::Shown => "shown",
            AuditKind::Refused => "refused",
            AuditKind::Denied => "denied",
            AuditKind::KeyRejected => "key_rejected",
            AuditKind::Unauthenticated => "unauthenticated",
            AuditKind::Busy => "busy",
            AuditKind::Throttled => "throttled",
            AuditKind::AcceptFailed => "accept_failed",
            AuditKind::KeysUnusable => "keys_unusable",
            AuditKind::TokenRevoked => "token_revoked",
            AuditKind::RevocationFailed => "revocation_failed",
            AuditKind::Repeated => "repeated",
        }
    }

    /// What came of it, for whoever does not want to know all kinds.
    pub const fn outcome(self) -> &'static str {
        match self {
            AuditKind::Granted
            | AuditKind::ServerGranted
            | AuditKind::Shown
            | AuditKind::TokenRevoked => "done",
            AuditKind::Refused
            | AuditKind::Denied
            | AuditKind::KeyRejected
            | AuditKind::Unauthenticated
            | AuditKind::Busy
            | AuditKind::Throttled
            | AuditKind::Repeated => "refused",
            AuditKind::AcceptFailed | AuditKind::KeysUnusable | AuditKind::RevocationFailed => {
                "failed"
            }
        }
    }

    /// Whether it is always told. A grant is limited by node, and what follows from it with it.
    const fn always(self) -> bool {
        matches!(
            self,
            AuditKind::Granted
                | AuditKind::ServerGranted
                | AuditKind::TokenRevoked
                | AuditKind::Repeated
        )
    }
}

/// One event. Peers' texts are in `what` as they came: whoever writes it down redacts and shortens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    pub kind: AuditKind,
    pub peer: Option<SocketAddr>,
    /// Fingerprint.
    pub key: Option<String>,
    pub node: Option<NodeName>,
    pub what: String,
    /// How many more, and from which network; only of [`AuditKind::Repeated`].
    pub count: Option<u64>,
    pub network: Option<IpAddr>,
}

impl AuditEvent {
    pub fn new(kind: AuditKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            peer: None,
            key: None,
            node: None,
            what: what.into(),
            count: None,
            network: None,
        }
    }

    pub fn of_peer(kind: AuditKind, peer: SocketAddr, what: impl Into<String>) -> Self {
        Self {
            peer: Some(peer),
            ..Self::new(kind, what)
        }
    }

    pub fn of_node(kind: AuditKind, node: NodeName, what: impl Into<String>) -> Self {
        Self {
            node: Some(node),
            ..Self::new(kind, what)
        }
    }
}

/// Receives audit events.
pub trait Audit: Send + Sync + 'static {
    fn record(&self, event: AuditEvent);
    /// Called once a minute.
    fn sum_up(&self) {}
}

/// Events of one network that are told in full each minute, beside the first of each kind.
const MAX_TOLD: u32 = 20;
/// Networks beyond this many are counted together.
const MAX_NETWORKS: usize = 1024;

/// Tells what a network does in full up to a limit, counts the rest, and tells the counts when it is
/// asked to sum up. So neither the log nor the memory depends on how much peers send.
pub struct SummedAudit<A: Audit> {
    told: A,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// None: events that have no peer.
    networks: HashMap<Option<IpAddr>, Network>,
    others: u64,
}

#[derive(Default)]
struct Network {
    told: u32,
    /// How many of each kind were not told.
    more: BTreeMap<&'static str, u64>,
}

impl<A: Audit> SummedAudit<A> {
    pub fn new(told: A) -> Self {
        Self {
            told,
            counts: Mutex::default(),
        }
    }

    /// Whether to tell this one.
    fn count(&self, kind: AuditKind, network: Option<IpAddr>) -> bool {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.networks.len() >= MAX_NETWORKS && !counts.networks.contains_key(&network) {
            counts.others += 1;
            return false;
        }
        let network = counts.networks.entry(network).or_default();
        match network.more.entry(kind.as_str()) {
            Entry::Occupied(more) if network.told >= MAX_TOLD => {
                *more.into_mut() += 1;
                false
            }
            entry => {
                entry.or_default();
                network.told += 1;
                true
            }
        }
    }
}

impl<A: Audit> Audit for SummedAudit<A> {
    fn record(&self, event: AuditEvent) {
        let network = event.peer.map(|peer| network_of(peer.ip()));
        if event.kind.always() || self.count(event.kind, network) {
            self.told.record(event);
        }
    }

    fn sum_up(&self) {
        let counts = {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *counts)
        };
        let sum = |what: &str, count, network| {
            let mut event = AuditEvent::new(AuditKind::Repeated, what);
            event.count = Some(count);
            event.network = network;
            self.told.record(event);
        };
        for (network, Network { more, .. }) in counts.networks {
            for (kind, count) in more.into_iter().filter(|(_, count)| *count > 0) {
                sum(kind, count, network);
            }
        }
        if counts.others > 0 {
            sum("from further networks", counts.others, None);
        }
    }
}

impl<A: Audit> Drop for SummedAudit<A> {
    fn drop(&mut self) {
        self.sum_up();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Default, Clone)]
    struct Told(Arc<Mutex<Vec<AuditEvent>>>);

    impl Audit for Told {
        fn record(&self, event: AuditEvent) {
            self.0.lock().unwrap().push(event);
        }
    }

    impl Told {
        fn take(&self) -> Vec<AuditEvent> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn rejected(peer: &str) -> AuditEvent {
        AuditEvent::of_peer(AuditKind::KeyRejected, peer.parse().unwrap(), "")
    }

    #[test]
    fn the_first_are_told_and_the_others_are_counted() {
        let told = Told::default();
        let audit = SummedAudit::new(told.clone());
        for port in 1..=1000 {
            audit.record(rejected(&format!("192.0.2.1:{port}")));
        }
        audit.record(rejected("192.0.2.2:1"));
        assert_eq!(told.take().len(), MAX_TOLD as usize + 1);
        // A flood of one kind hides no other kind.
        audit.record(AuditEvent::of_peer(
            AuditKind::Throttled,
            "192.0.2.1:1".parse().unwrap(),
            "",
        ));
        assert_eq!(told.take().len(), 1);
        audit.sum_up();
        let sum = told.take();
        assert_eq!(sum.len(), 1);
        assert_eq!(sum[0].count, Some(1000 - u64::from(MAX_TOLD)));
        assert_eq!(sum[0].network, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(sum[0].what, "key_rejected");
        audit.sum_up();
        assert_eq!(told.take(), []);
        for port in 0..=MAX_TOLD as u16 {
            audit.record(rejected(&format!("192.0.2.1:{port}")));
        }
        assert_eq!(told.take().len(), MAX_TOLD as usize);
        drop(audit);
        assert_eq!(told.take().len(), 1, "what was counted is told at the end");
    }

    #[test]
    fn a_flood_of_networks_is_bounded_and_grants_are_always_told() {
        let told = Told::default();
        let audit = SummedAudit::new(told.clone());
        for n in 0..5000u32 {
            audit.record(rejected(&format!("10.0.{}.{}:1", n / 256, n % 256)));
        }
        assert_eq!(told.take().len(), MAX_NETWORKS);
        audit.sum_up();
        let sum = told.take();
        assert_eq!(sum.len(), 1);
        assert_eq!(sum[0].count, Some(5000 - MAX_NETWORKS as u64));
        let granted = AuditEvent::new(AuditKind::Granted, "join");
        for _ in 0..=MAX_TOLD {
            audit.record(granted.clone());
        }
        assert_eq!(told.take().len(), MAX_TOLD as usize + 1);
    }
}
