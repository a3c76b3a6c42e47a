//! Waiting for something to become true.

use std::time::{Duration, Instant};

/// Far beyond what anything here takes, so that only a broken thing reaches it.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(50);

/// Asks again and again until the answer is `Some`.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "gave up waiting until {what}");
        tokio::time::sleep(PAUSE).await;
    }
}
