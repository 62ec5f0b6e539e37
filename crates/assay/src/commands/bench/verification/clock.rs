//! Time as work: what the calling thread spent on a processor, so that a machine shared with others does not count their work.

/// Milliseconds of the calling thread so far.
#[cfg(unix)]
pub fn now() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as f64 * 1e3 + t.tv_nsec as f64 / 1e6
}

/// Milliseconds since the first call: where threads have no clock of their own, the machine must be idle.
#[cfg(not(unix))]
pub fn now() -> f64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed().as_secs_f64() * 1e3
}

/// Milliseconds that `work` takes on this thread.
pub fn core_ms<T>(work: impl FnOnce() -> T) -> f64 {
    let started = now();
    std::hint::black_box(work());
    now() - started
}

/// The middle of several measurements; of an even number, the upper one of the middle two. 0 of none.
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_is_no_work() {
        let slept = core_ms(|| std::thread::sleep(std::time::Duration::from_millis(50)));
        assert!(!cfg!(unix) || slept < 25.0, "{slept}");
        assert!(core_ms(|| (0..100_000u64).map(std::hint::black_box).sum::<u64>()) > 0.0);
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![])), (2.0, 0.0));
    }
}
