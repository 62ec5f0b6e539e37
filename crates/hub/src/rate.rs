//! Limits of bandwidth. A rate is shared by everything that is to stay below it together; who takes bytes waits until the rate
//! has them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::RATE_BURST;

/// When bytes may go at a rate: a time that each byte moves on, and that is never further back than the burst.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    free_at: Duration,
}

impl Bucket {
    /// Takes `bytes` at `now`; how long to wait before they go.
    fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let begin = self.free_at.max(now.saturating_sub(RATE_BURST));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        self.free_at = begin + Duration::from_nanos(nanos.min(u128::from(u64::MAX / 4)) as u64);
        self.free_at.saturating_sub(now)
    }
}

/// A limit of bytes a second, or none. Copies share it.
#[derive(Clone, Debug, Default)]
pub struct Rate(Option<Arc<(Instant, Mutex<Bucket>)>>);

impl Rate {
    /// No limit.
    pub const UNLIMITED: Rate = Rate(None);

    /// At most `bytes` a second; at least one.
    pub fn bytes_per_second(bytes: u64) -> Rate {
        let bucket = Bucket { bytes_per_second: bytes.max(1), free_at: Duration::ZERO };
        Rate(Some(Arc::new((Instant::now(), Mutex::new(bucket)))))
    }

    /// Bytes that go in a tenth of a second, for whoever cuts what it sends into pieces.
    pub(crate) fn piece(&self) -> u64 {
        match &self.0 {
            None => u64::MAX,
            Some(it) => (it.1.lock().unwrap_or_else(PoisonError::into_inner).bytes_per_second / 10).max(1),
        }
    }

    /// Takes `bytes`, and waits until the rate has them. If this is dropped while it waits, they are taken all the same.
    pub async fn take(&self, bytes: u64) {
        let Some(it) = &self.0 else { return };
        let wait = it.1.lock().unwrap_or_else(PoisonError::into_inner).take(it.0.elapsed(), bytes);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_their_rate() {
        let mut bucket = Bucket { bytes_per_second: 1000, free_at: Duration::ZERO };
        let second = Duration::from_secs(1);
        assert_eq!(bucket.take(second, 100), Duration::ZERO, "the burst");
        assert_eq!(bucket.take(second, 100), second / 10);
        assert_eq!(bucket.take(second, 1000), second + second / 10);
        assert_eq!(bucket.take(second * 100, 100), Duration::ZERO, "a pause is worth one burst");
        assert_eq!(bucket.take(second * 100, 1), second / 1000);
        assert!(bucket.take(second, u64::MAX) > second);
    }
}
