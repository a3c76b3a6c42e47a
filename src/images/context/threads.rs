//! How many threads read contexts at the same time, however many contexts there are: as many as there are processors.
//!
//! A context that is read has a seat, and calls helpers to those seats that nobody has. If each brought a thread for every
//! processor, many of them would keep one another from the processors.

use std::num::NonZero;
use std::sync::{Arc, LazyLock};
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

static SHARED: LazyLock<Threads> =
    LazyLock::new(|| Threads::new(thread::available_parallelism().map_or(1, NonZero::get)));

/// Seats for threads that read.
#[derive(Debug)]
pub struct Threads {
    seats: usize,
    free: Arc<Semaphore>,
}

/// What a reader calls when there is more to do than it can do at once.
pub(super) type More<'m> = dyn FnMut() + 'm;

impl Threads {
    /// The seats of this process.
    pub fn shared() -> &'static Self {
        &SHARED
    }

    pub(super) fn new(seats: usize) -> Self {
        Self {
            seats,
            free: Arc::new(Semaphore::new(seats)),
        }
    }

    /// Waits for a seat, which is free again when the answer is dropped. There is always one to come.
    pub async fn seat(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    /// Runs `work` on this thread, whose seat is the caller's matter, and once more on a thread of its own whenever it asks for
    /// help while a seat is free; on `most` threads in all. Helpers get no help themselves.
    pub(super) fn share<R: Send>(
        &self,
        most: usize,
        work: impl Fn(&mut More<'_>) -> R + Sync,
    ) -> Vec<R> {
        let most = most.min(self.seats);
        let work = &work;
        thread::scope(|scope| {
            let mut helpers = Vec::new();
            let own = work(&mut || {
                if helpers.len() + 1 >= most {
                    return;
                }
                if let Ok(seat) = Arc::clone(&self.free).try_acquire_owned() {
                    helpers.push(scope.spawn(move || {
                        let _seat = seat;
                        work(&mut || {})
                    }));
                }
            });
            let helped = helpers.into_iter().map(|helper| {
                helper
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            std::iter::once(own).chain(helped).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[tokio::test]
    async fn all_readers_together_have_no_more_threads_than_there_are_seats() {
        let threads = Threads::new(3);
        let seats = (threads.seat().await, threads.seat().await);
        let have_asked = AtomicUsize::new(0);
        let patience = Instant::now() + Duration::from_secs(20);
        let work = |more: &mut More<'_>| {
            more();
            more();
            have_asked.fetch_add(1, Ordering::SeqCst);
            // Nobody's seat may be free again before all have asked for one.
            while have_asked.load(Ordering::SeqCst) < 3 && Instant::now() < patience {
                thread::yield_now();
            }
        };
        let runs: usize = thread::scope(|scope| {
            let readers = [(); 2].map(|()| scope.spawn(|| threads.share(9, work).len()));
            readers.map(|reader| reader.join().unwrap()).iter().sum()
        });
        assert_eq!(runs, 3);
        drop(seats);
        assert_eq!(threads.free.available_permits(), 3);
    }

    #[test]
    fn nobody_gets_more_helpers_than_the_work_is_worth() {
        let threads = Threads::new(4);
        let asked = |most| {
            let results = threads.share(most, |more| (0..9).for_each(|_| more()));
            results.len()
        };
        assert_eq!([0, 1, 2, 4, 9].map(asked), [1, 1, 2, 4, 4]);
    }
}
