//! How many connections each network has.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::network::network_of;

#[derive(Clone, Default)]
pub(super) struct Slots(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Slots {
    /// A place for one more connection, unless the address's network has as many as it may.
    pub(super) fn take(&self, address: IpAddr, limit: usize) -> Option<Slot> {
        let network = network_of(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(network).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Slot {
            counts: self.clone(),
            network,
        })
    }
}

/// One connection's place; given back when dropped.
pub(super) struct Slot {
    counts: Slots,
    network: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_places_and_takes_no_other_s() {
        let slots = Slots::default();
        let take = |text: &str| slots.take(text.parse().unwrap(), 2);
        let held = [take("2001:db8::1"), take("2001:db8::2")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("2001:db8::3").is_none());
        assert!(take("2001:db8:0:1::1").is_some());
        drop(held);
        assert!(take("2001:db8::3").is_some());
        assert!(slots.0.lock().unwrap().is_empty());
    }
}
