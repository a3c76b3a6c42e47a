//! How often somebody may do something: one token bucket each, in a table of bounded size.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many at once, and one more after each interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub burst: u32,
    pub interval: Duration,
}

/// A bucket is one moment: when it will be full again. A moment that is past needs no memory.
pub(super) struct Throttle<K> {
    rate: Rate,
    capacity: usize,
    full_again: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash + Clone> Throttle<K> {
    /// At most `capacity` keys are remembered; beyond that, those that owe least are forgotten.
    pub(super) fn new(rate: Rate, capacity: usize) -> Self {
        Self {
            rate,
            capacity,
            full_again: Mutex::new(HashMap::new()),
        }
    }

    /// How long this one must wait; zero if it need not.
    pub(super) fn wait(&self, key: &K, now: Instant) -> Duration {
        let table = self
            .full_again
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let owed = table
            .get(key)
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        owed.saturating_sub(self.rate.interval * self.rate.burst.saturating_sub(1))
    }

    /// Counts one.
    pub(super) fn charge(&self, key: &K, now: Instant) {
        let mut table = self
            .full_again
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if table.len() >= self.capacity && !table.contains_key(key) {
            table.retain(|_, at| *at > now);
            if table.len() >= self.capacity
                && let Some(least) = table.iter().min_by_key(|(_, at)| **at)
            {
                let least = least.0.clone();
                table.remove(&least);
            }
        }
        let most = now + self.rate.interval * self.rate.burst;
        let at = table.entry(key.clone()).or_insert(now);
        *at = ((*at).max(now) + self.rate.interval).min(most);
    }

    /// Counts one if it may be; otherwise says how long to wait.
    pub(super) fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let wait = self.wait(key, now);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        self.charge(key, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate {
        burst: 3,
        interval: Duration::from_secs(10),
    };

    #[test]
    fn a_burst_then_one_after_each_interval() {
        let throttle = Throttle::new(RATE, 10);
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(throttle.take(&"a", start), Ok(()));
        }
        assert_eq!(throttle.take(&"a", start), Err(RATE.interval));
        assert_eq!(throttle.take(&"b", start), Ok(()));
        let later = start + Duration::from_secs(4);
        assert_eq!(throttle.take(&"a", later), Err(Duration::from_secs(6)));
        let later = start + RATE.interval;
        assert_eq!(throttle.take(&"a", later), Ok(()));
        assert_eq!(throttle.take(&"a", later), Err(RATE.interval));
        let much_later = start + Duration::from_secs(1000);
        for _ in 0..3 {
            assert_eq!(throttle.take(&"a", much_later), Ok(()));
        }
    }

    #[test]
    fn charging_beyond_the_limit_does_not_add_up() {
        let throttle = Throttle::new(RATE, 10);
        let start = Instant::now();
        for _ in 0..1000 {
            throttle.charge(&"a", start);
        }
        assert_eq!(throttle.wait(&"a", start), RATE.interval);
    }

    #[test]
    fn a_flood_of_addresses_neither_grows_the_table_nor_forgives_who_owes_most() {
        let throttle = Throttle::new(RATE, 100);
        let start = Instant::now();
        for _ in 0..3 {
            throttle.charge(&u32::MAX, start);
        }
        for address in 0..10_000 {
            throttle.charge(&address, start);
        }
        assert_eq!(throttle.full_again.lock().unwrap().len(), 100);
        assert!(throttle.wait(&u32::MAX, start) > Duration::ZERO);
    }

    proptest! {
        #[test]
        fn no_more_than_the_burst_and_the_rate_pass(gaps in proptest::collection::vec(0u64..20, 1..200)) {
            let throttle = Throttle::new(RATE, 4);
            let start = Instant::now();
            let (mut seconds, mut passed) = (0, 0);
            for gap in gaps {
                seconds += gap;
                passed += u64::from(throttle.take(&(), start + Duration::from_secs(seconds)).is_ok());
            }
            prop_assert!(passed <= 3 + seconds / 10);
        }
    }
}
