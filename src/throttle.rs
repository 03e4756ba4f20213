//! Keeps log lines that concern each request from drowning the others.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets a line be logged once in each `interval`, and counts how often it was held back.
#[derive(Debug)]
pub(crate) struct Throttle {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::default() }
    }

    /// Returns `None` if the line must be held back now. Otherwise returns how many times it was held back since it was
    /// last logged.
    pub(crate) fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.said.is_some_and(|said| now.saturating_duration_since(said) < self.interval) {
            state.held_back += 1;
            return None;
        }
        state.said = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_back_is_counted_for_the_next_line() {
        let throttle = Throttle::new(Duration::from_secs(10));
        let began = Instant::now();
        let passed =
            [0, 1, 9, 10, 11, 30].map(|second| throttle.pass_at(began + Duration::from_secs(second)));
        assert_eq!(passed, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
