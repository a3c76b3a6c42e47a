//! Which tokens are out, and when one's purpose is over. Pure: the cluster is asked elsewhere.

use jiff::Timestamp;
use orch_contract::NodeName;

use super::cluster::{Lease, ListedToken};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    id: String,
    node: NodeName,
    /// None: it never expires by itself.
    expires_at: Option<Timestamp>,
    first_look: Option<FirstLook>,
}

/// The node's lease when it was first looked at. A machine that is made anew inherits one from its
/// predecessor, and nodes' clocks differ from the server's, so only a lease that changes says that
/// the node has its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FirstLook {
    renewed: Option<String>,
}

impl Token {
    /// Whether the node has joined since the first look.
    fn look(&mut self, leases: &[Lease]) -> bool {
        let lease = leases.iter().find(|lease| lease.node == self.node.as_str());
        let renewed = lease.map(|lease| lease.renewed.clone());
        match &self.first_look {
            Some(first) => renewed.is_some() && renewed != first.renewed,
            None => {
                self.first_look = Some(FirstLook { renewed });
                false
            }
        }
    }
}

/// Why a token is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Joined,
    Expired,
}

impl Why {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Why::Joined => "the node has joined",
            Why::Expired => "its time is up",
        }
    }
}

/// A token that is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Over {
    pub(super) id: String,
    pub(super) node: NodeName,
    pub(super) why: Why,
}

#[derive(Debug, Default)]
pub(super) struct Outstanding(Vec<Token>);

impl Outstanding {
    pub(super) fn from_list(listed: Vec<ListedToken>) -> Self {
        let mut outstanding = Self::default();
        for token in listed {
            outstanding.add(token.id, token.node, token.expires_at);
        }
        outstanding
    }

    pub(super) fn add(&mut self, id: String, node: NodeName, expires_at: Option<Timestamp>) {
        self.forget(&id);
        self.0.push(Token {
            id,
            node,
            expires_at,
            first_look: None,
        });
    }

    pub(super) fn forget(&mut self, id: &str) {
        self.0.retain(|token| token.id != id);
    }

    /// Adds those that were not known.
    pub(super) fn merge(&mut self, listed: Vec<ListedToken>) {
        for token in listed {
            if !self.0.iter().any(|known| known.id == token.id) {
                self.add(token.id, token.node, token.expires_at);
            }
        }
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.0.iter().map(|token| &token.node)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn ids_of(&self, node: &NodeName) -> Vec<String> {
        let of_node = self.0.iter().filter(|token| token.node == *node);
        of_node.map(|token| token.id.clone()).collect()
    }

    /// Compares with what was seen before; None: nothing could be seen this time. The tokens whose purpose is over. They stay until they
    /// are [forgotten](Self::forget), so that a failed deletion is tried again.
    pub(super) fn take_looks(&mut self, leases: Option<&[Lease]>, now: Timestamp) -> Vec<Over> {
        let mut over = Vec::new();
        for token in &mut self.0 {
            let why = if leases.is_some_and(|leases| token.look(leases)) {
                Why::Joined
            } else if token.expires_at.is_some_and(|at| at <= now) {
                Why::Expired
            } else {
                continue;
            };
            over.push(Over {
                id: token.id.clone(),
                node: token.node.clone(),
                why,
            });
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::UNIX_EPOCH;

    fn one() -> Outstanding {
        let mut outstanding = Outstanding::default();
        let expires = START + jiff::SignedDuration::from_secs(300);
        outstanding.add("abc123".into(), "agent".parse().unwrap(), Some(expires));
        outstanding
    }

    fn leases(renewed: &str) -> Vec<Lease> {
        vec![Lease {
            node: "agent".into(),
            renewed: renewed.into(),
        }]
    }

    #[test]
    fn a_first_lease_means_joined() {
        let mut outstanding = one();
        assert_eq!(outstanding.take_looks(Some(&[]), START), []);
        assert_eq!(outstanding.take_looks(Some(&[]), START), []);
        let over = outstanding.take_looks(Some(&leases("1")), START);
        assert_eq!(over[0].why, Why::Joined);
        // Deleting may fail: it is still there until it is forgotten.
        assert_eq!(outstanding.take_looks(Some(&leases("1")), START), over);
        outstanding.forget("abc123");
        assert!(outstanding.is_empty());
    }

    #[test]
    fn a_predecessor_s_lease_means_nothing_until_it_changes() {
        let mut outstanding = one();
        // A look that failed is none.
        assert_eq!(outstanding.take_looks(None, START), []);
        assert_eq!(outstanding.take_looks(Some(&leases("1")), START), []);
        assert_eq!(outstanding.take_looks(Some(&leases("1")), START), []);
        // A lease that is collected as garbage is no sign of life.
        assert_eq!(outstanding.take_looks(Some(&[]), START), []);
        assert_eq!(
            outstanding.take_looks(Some(&leases("2")), START)[0].why,
            Why::Joined
        );
    }

    #[test]
    fn a_node_that_never_joins_loses_its_token_at_the_end() {
        let mut outstanding = one();
        let end = START + jiff::SignedDuration::from_secs(300);
        let before = end - jiff::SignedDuration::from_secs(1);
        assert_eq!(outstanding.take_looks(Some(&[]), before), []);
        assert_eq!(outstanding.take_looks(None, end)[0].why, Why::Expired);
    }

    #[test]
    fn a_node_s_tokens_are_found_whoever_made_them() {
        let node: NodeName = "agent".parse().unwrap();
        let listed = ["aaaaaa", "bbbbbb"].map(|id| ListedToken {
            id: id.into(),
            node: node.clone(),
            expires_at: None,
        });
        let outstanding = Outstanding::from_list(listed.to_vec());
        assert_eq!(outstanding.ids_of(&node), ["aaaaaa", "bbbbbb"]);
        assert_eq!(
            outstanding.ids_of(&"other".parse().unwrap()),
            Vec::<String>::new()
        );
    }
}
