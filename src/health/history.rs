//! The last minutes of a server: its lag, and the reasons for which it was chosen.
//!
//! The monitor adds to it at each look, about once a `check_interval`. It takes a few kilobytes for each server,
//! however short that interval is.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::counters::{Counts, Key, Tally};

/// The time for which lag is kept.
pub(crate) const LAG_PERIOD: Duration = Duration::from_secs(300);

/// The length of one sample, which has the worst lag of that time.
const LAG_STEP: Duration = Duration::from_secs(2);

/// The time for which choices are kept.
const CHOICES_PERIOD: Duration = Duration::from_secs(60);

const CHOICES_STEP: Duration = Duration::from_secs(5);

/// A sample of a server's lag.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LagSample {
    pub(crate) ago: Duration,
    /// `None` where the lag could not be known.
    pub(crate) lag: Option<Duration>,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    lags: VecDeque<(Instant, Option<Duration>)>,
    choices: VecDeque<(Instant, Tally)>,
}

impl History {
    pub(crate) fn add(&mut self, now: Instant, lag: Option<Duration>, choices: &Tally) {
        match self.lags.back_mut() {
            Some((since, worst)) if now.duration_since(*since) < LAG_STEP => *worst = lag.max(*worst),
            _ => self.lags.push_back((now, lag)),
        }
        let is_old = |at: Instant, period| now.duration_since(at) > period;
        while self.lags.front().is_some_and(|(at, _)| is_old(*at, LAG_PERIOD)) {
            self.lags.pop_front();
        }
        if self.choices.back().is_none_or(|(at, _)| is_old(*at, CHOICES_STEP)) {
            let copy = Tally::default();
            copy.absorb(choices);
            self.choices.push_back((now, copy));
        }
        // One sample that is older than the period stays, because counting begins there.
        while self.choices.get(1).is_some_and(|(at, _)| is_old(*at, CHOICES_PERIOD)) {
            self.choices.pop_front();
        }
    }

    /// The samples, from the oldest to the latest.
    pub(crate) fn lags(&self, now: Instant) -> Vec<LagSample> {
        let sample = |(at, lag): &(Instant, _)| LagSample { ago: now.duration_since(*at), lag: *lag };
        self.lags.iter().map(sample).collect()
    }

    /// The choices of about the last minute. `choices` has all that were ever counted.
    pub(crate) fn latest_choices<K: Key + PartialEq>(&self, choices: &Tally) -> Counts<K> {
        let then: Counts<K> = self.choices.front().map(|(_, then)| then.read()).unwrap_or_default();
        let now: Counts<K> = choices.read();
        now.map(|key, count| count.saturating_sub(then.get(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::NodeState;

    fn at(origin: Instant, seconds: u64) -> Instant {
        origin + Duration::from_secs(seconds)
    }

    #[test]
    fn the_worst_lag_of_each_step_is_kept_for_the_period() {
        let (mut history, origin, choices) = (History::default(), Instant::now(), Tally::default());
        let lag = |ms| Some(Duration::from_millis(ms));
        for (ms, known) in [(0, lag(300)), (500, lag(900)), (1_500, None), (2_000, None), (4_100, lag(5))] {
            history.add(origin + Duration::from_millis(ms), known, &choices);
        }
        let lags: Vec<_> = history.lags(at(origin, 5)).iter().map(|sample| sample.lag).collect();
        assert_eq!(lags, [lag(900), None, lag(5)]);
        assert_eq!(history.lags(at(origin, 5))[0].ago, Duration::from_secs(5));

        for second in 5..1_000 {
            history.add(at(origin, second), lag(1), &choices);
        }
        let lags = history.lags(at(origin, 999));
        assert!((149..=151).contains(&lags.len()), "{}", lags.len());
        assert!(lags[0].ago <= LAG_PERIOD && lags[0].ago > LAG_PERIOD - LAG_STEP * 2);
    }

    #[test]
    fn choices_of_the_last_minute_are_told_from_those_before() {
        let (mut history, origin, choices) = (History::default(), Instant::now(), Tally::default());
        assert_eq!(history.latest_choices::<NodeState>(&choices).total(), 0);
        for second in 0..=300 {
            history.add(at(origin, second), None, &choices);
            choices.add(if second < 200 { NodeState::Up } else { NodeState::Down });
        }
        let latest = history.latest_choices(&choices);
        assert_eq!(latest.get(NodeState::Up), 0);
        let latest = latest.get(NodeState::Down);
        assert!((60..=67).contains(&latest), "{latest}");
        assert!(history.choices.len() < 15);
    }
}
