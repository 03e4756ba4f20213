//! How late a slave is, and whether it serves.

use std::time::{Duration, Instant};

use super::super::{NodeState, ServerId};
use super::{Master, Outcome, Untold, Verdicts, Why};
use crate::backend::{Observation, ReportedRole};
use crate::config::SlaveLog;
use crate::position::{Gap, Lag};

impl Verdicts {
    /// The lag of a slave at the observed position. While the master has no connection to spare for the monitor, it may
    /// have gone on since it was last seen.
    pub(super) fn lag(
        &self,
        server: ServerId,
        log: SlaveLog,
        observed: &Observation,
        now: Instant,
    ) -> Result<Lag, Untold> {
        if log == SlaveLog::Other {
            return Err(Untold::OtherLog);
        }
        let position = observed.position.as_ref().ok_or(Untold::BySlave)?;
        let master = &self.servers[&self.master];
        // The last position that the master told says nothing of what it has written since.
        if master.latest.as_ref().is_some_and(|latest| latest.position.is_none()) {
            return Err(Untold::ByMaster);
        }
        let looked = self.history.looked().ok_or(Untold::ByMaster)?;
        let is_full = master.outcome == Outcome::Full;
        let (history, at) = match &self.without_master {
            Some(without_master) if !is_full && self.is_overtaken(server) => (without_master, now),
            _ if is_full || !self.history.is_of_this_master() || self.is_overtaken(server) => {
                (&self.history, now)
            }
            _ => (&self.history, looked),
        };
        let lag = history.lag(position, at).ok_or(Untold::Empty)?;
        Ok(if is_full { lag.at_least(now.saturating_duration_since(looked)) } else { lag })
    }

    pub(super) fn judge_slave(
        &mut self,
        server: ServerId,
        log: SlaveLog,
        observed: &Observation,
        lag: Result<Lag, Untold>,
        now: Instant,
    ) -> (NodeState, Why) {
        let judged = self.judge_as_slave(server, log, observed, lag, now);
        self.servers.entry(server).or_default().judged = Some(judged.0);
        judged
    }

    fn judge_as_slave(
        &mut self,
        server: ServerId,
        log: SlaveLog,
        observed: &Observation,
        lag: Result<Lag, Untold>,
        now: Instant,
    ) -> (NodeState, Why) {
        let is_ours = self.system.is_some() && observed.system == self.system;
        match (observed.role, log) {
            (_, SlaveLog::Masters) if self.is_of_other_system(observed.system) => {
                return (NodeState::Stranger, Why::Nothing);
            }
            (ReportedRole::Master, SlaveLog::Masters) => return (self.beside_master(server), Why::Nothing),
            // A former master that takes writes, though nothing tells whether it replicates.
            (ReportedRole::Unknown, SlaveLog::Masters) if self.servers[&server].was_master => {
                return (NodeState::SecondMaster, Why::Nothing);
            }
            // Not a logical replica, but one of the master's own slaves that was promoted.
            (ReportedRole::Master, SlaveLog::Other) if is_ours => {
                return (self.beside_master(server), Why::Nothing);
            }
            _ => {}
        }
        let master = self.master();
        let record = &self.servers[&server];
        if record.diverged.is_some() && log == SlaveLog::Masters {
            return (NodeState::Diverged, Why::Nothing);
        }
        // The master may have written more since it was looked at.
        let is_compared = observed.position.as_ref().is_some_and(|at| record.compared_with(at).is_some());
        if record.ahead.is_some()
            && !is_compared
            && self.contents().is_some()
            && self.servers[&self.master].outcome != Outcome::Full
        {
            return (NodeState::New, Why::Nothing);
        }
        let lag = match lag {
            Ok(lag) => lag,
            Err(untold) if master == Master::Answers && self.checks.unknown_lag.excludes(log) => {
                return (NodeState::LagUnknown, Why::Untold(untold));
            }
            Err(_) => return (NodeState::Up, Why::Nothing),
        };
        let is_launching = || {
            self.known_since.is_some_and(|since| now.saturating_duration_since(since) < self.checks.interval)
        };
        // The slave may be behind by a moment only.
        if self.checks.is_too_much(lag)
            && matches!(lag, Lag::MoreThan(_))
            && master == Master::Answers
            && is_launching()
        {
            return (NodeState::New, Why::Nothing);
        }
        let overtaken = self.is_overtaken(server);
        let gap = observed.position.as_ref().map_or(Gap::Time(Duration::ZERO), |at| self.history.gap(at));
        let doubts = self.doubts(server, gap, overtaken, lag, now);
        let record = self.servers.entry(server).or_default();
        let is_late = if doubts {
            record.lateness.leaves_out() || record.judged == Some(NodeState::Behind)
        } else {
            // A slave did not fall behind if it lacks transactions of a master that is gone, or of one that took over.
            // It serves as soon as it has them.
            if record.lateness.leaves_out() || gap != Gap::Failover && !overtaken {
                record.lateness.observe(&self.checks, lag, now, master);
            }
            record.lateness.leaves_out() || self.checks.is_too_much(lag)
        };
        match (is_late, lag, gap) {
            (false, ..) => (NodeState::Up, Why::Nothing),
            (true, Lag::AtMost(lag), Gap::Failover) => (NodeState::Behind, Why::SinceFailover(lag)),
            (true, lag, _) => (NodeState::Behind, Why::Lag(lag)),
        }
    }

    /// True if a gap between two looks at the master may be the only reason why a slave seems late. The way to the
    /// master was lost, or this process stood still. The missing transactions were written at some time of the gap. If
    /// that was at its end, the slave is within `max_lag`. Later looks find that the slave has caught up, or that it
    /// lacks them for longer.
    ///
    /// A doubt ends after `max_lag`, once the master answers. Otherwise it would never end if a slow master makes a gap
    /// before each look.
    ///
    /// A gap between two masters raises no doubt: the slave may lack the latest writes to the former one.
    fn doubts(&mut self, server: ServerId, gap: Gap, overtaken: bool, lag: Lag, now: Instant) -> bool {
        /// The longest pause between two looks at the master that is no gap, in check intervals.
        const LONGEST_PAUSE: u32 = 2;

        let gap = match gap {
            Gap::Time(gap) => gap,
            Gap::Failover => Duration::ZERO,
        };
        let may_be_late = |max: &Duration| match lag {
            Lag::AtMost(most) => most > *max && most.saturating_sub(gap) <= *max,
            Lag::MoreThan(_) => false,
        };
        let (max, master) = (self.checks.max_lag.filter(may_be_late), self.master());
        let in_doubt = &mut self.servers.entry(server).or_default().in_doubt;
        match max {
            Some(max) if gap > self.checks.interval * LONGEST_PAUSE => {
                let lasts = now.saturating_duration_since(*in_doubt.get_or_insert(now));
                lasts <= max || master == Master::Gone && !overtaken
            }
            _ => {
                *in_doubt = None;
                false
            }
        }
    }
}
