//! Probes and `max_lag`.

use std::time::Duration;

use super::table::{ConfigError, Limit, Place, Table};
use super::{Checks, Consistency, SlaveConfig, UnknownLag, slaves};
use crate::backend::Driver;

const MAX_LAG: &str = "max_lag";

/// The default of `max_lag` in position mode. Clients see their own writes there whatever the lag is. So this limit
/// only keeps reads from slaves that are far behind.
const POSITION_MAX_LAG: Duration = Duration::from_secs(60);

/// The keys of the section that concern probes and lag.
pub(super) struct CheckKeys {
    interval: Duration,
    timeout: Duration,
    max_lag: Limit,
    unknown_lag: Option<UnknownLag>,
    follow_promotion: bool,
}

impl CheckKeys {
    pub(super) fn read<DB: Driver>(section: &mut Table<'_>) -> Self {
        let second = Duration::from_secs(1);
        let keys = Self {
            max_lag: section.limit(MAX_LAG),
            unknown_lag: section.choice("unknown_lag", "`\"use\"` or `\"leave_out\"`"),
            interval: section.seconds("check_interval", 0.01..=3_600.0).unwrap_or(second),
            timeout: section.seconds("check_timeout", 0.01..=3_600.0).unwrap_or(second),
            follow_promotion: section.bool("follow_promotion").unwrap_or(false),
        };
        if keys.follow_promotion && !DB::TELLS_PROMOTION {
            let problem = format!("{} does not prove which server was promoted: remove the key", DB::NAME);
            section.refuse("follow_promotion", problem);
        }
        keys
    }

    /// In window mode, `max_lag` has to [guard](Checks::guard) the window, unless it is switched off.
    pub(super) fn check(
        self,
        section: &Place,
        slaves: &[SlaveConfig],
        lag_window: Duration,
        consistency: Consistency,
    ) -> Result<Checks, ConfigError> {
        let Self { interval, timeout, follow_promotion, .. } = self;
        let seconds = |duration: Duration| duration.as_secs_f64();
        let most = lag_window.saturating_sub(interval + timeout);
        let (guards_window, remedy) = match consistency {
            Consistency::Window => (
                !lag_window.is_zero(),
                "raise `lag_window`, shorten `check_interval` and `check_timeout`, or say `max_lag = false`",
            ),
            Consistency::Position => (false, "raise `max_lag`, or say `max_lag = false`"),
        };
        let max_lag = match self.max_lag {
            _ if slaves.is_empty() => None,
            Limit::Never => None,
            Limit::Auto if consistency == Consistency::Position => Some(POSITION_MAX_LAG.max(interval)),
            Limit::Auto if !guards_window => None,
            Limit::Auto if most < interval => {
                let problem = format!(
                    "with `lag_window` = {}, a lag cannot be noticed before the window is over: {remedy}",
                    seconds(lag_window),
                );
                return Err(section.error(MAX_LAG, problem));
            }
            Limit::Auto => Some(most),
            Limit::Seconds(max) if max > most && guards_window => {
                let problem = format!(
                    "must not exceed `lag_window` less `check_interval` and `check_timeout`, which is {}: {remedy}",
                    seconds(most),
                );
                return Err(section.error(MAX_LAG, problem));
            }
            Limit::Seconds(max) if max < interval => {
                let problem = format!("must not be below `check_interval`, which is {}", seconds(interval));
                return Err(section.error(MAX_LAG, problem));
            }
            Limit::Seconds(max) => Some(max),
        };

        for (index, slave) in slaves.iter().enumerate() {
            if let (Some(follow), Some(max)) = (slave.follow, max_lag)
                && follow >= max
            {
                let problem = format!("must be below `max_lag`, which is {}: {remedy}", seconds(max));
                return Err(section.inner(&slaves::key(index)).error("follow", problem));
            }
        }
        // Where `max_lag` makes sure that clients see their own writes, an unknown lag may be too long.
        let unknown_lag = self.unknown_lag.unwrap_or(match max_lag {
            Some(max) if max <= most => UnknownLag::Unexpected,
            _ => UnknownLag::Use,
        });
        Ok(Checks { interval, timeout, max_lag, unknown_lag, follow_promotion })
    }
}
