//! Servers compared by their positions: slaves with the master, and slaves with each other while the master is gone.

use std::time::Instant;

use super::super::ServerId;
use super::{Ahead, Diverged, Master, Verdicts};
use crate::backend::{Observation, ReportedRole};
use crate::config::SlaveLog;
use crate::position::{GtidSet, Position};

impl Verdicts {
    /// Remembers the slave's position in the master's log. While the master is gone, that position tells how far the
    /// log went at least.
    pub(super) fn find_place(
        &mut self,
        server: ServerId,
        log: SlaveLog,
        observed: &Observation,
        began: Instant,
    ) {
        // A server that takes writes has what it had as a slave.
        if observed.role == ReportedRole::Master {
            return;
        }
        let place = self.place_of(server, log, observed);
        if let Some(place) = place.clone().filter(|_| self.master() == Master::Gone) {
            let known = self.without_master.get_or_insert_with(|| self.history.clone());
            // If two positions each lack a part of the other, neither is further.
            if known.latest().is_none_or(|latest| place.reaches(latest)) {
                known.record(place, began);
            }
        }
        self.servers.entry(server).or_default().place = place;
    }

    /// The slave's position, if it belongs to the master's history: the master must have been seen to have it.
    /// PostgreSQL tells an ordinary role the timeline of the latest restartpoint, which may be older than the replayed
    /// position.
    fn place_of(&self, server: ServerId, log: SlaveLog, observed: &Observation) -> Option<Position> {
        let (record, position) = (&self.servers[&server], observed.position.as_ref()?);
        let is_comparable = log == SlaveLog::Masters
            && record.compared_with(position) == Some(self.number)
            && record.diverged.is_none()
            && !self.is_of_other_system(observed.system);
        let known = self.history.latest().filter(|_| is_comparable)?;
        match (position, known) {
            (Position::Lsn { lsn, .. }, Position::Lsn { timeline, .. }) => {
                Some(Position::Lsn { timeline: *timeline, lsn: *lsn })
            }
            (position, known) => position.of_sources_of(known),
        }
    }

    /// True if the master is gone, and another server that is there has all of the master's log that this slave has,
    /// and more. The longer that lasts, the later this slave is. Transactions that no server has make no slave late, as
    /// no read can find them.
    pub(super) fn is_overtaken(&self, server: ServerId) -> bool {
        let Some(ours) = self.servers[&server].place.as_ref().filter(|_| self.master() == Master::Gone)
        else {
            return false;
        };
        self.servers.iter().any(|(id, other)| {
            let is_further = |theirs: &Position| theirs.reaches(ours) && !ours.reaches(theirs);
            let is_there = *id != server && other.latest.is_some() && other.diverged.is_none();
            is_there && other.place.as_ref().is_some_and(is_further)
        })
    }

    /// Begins the history of another master. Proofs and comparisons with the history of the one before are void.
    pub(super) fn begin_history(&mut self) {
        self.number = self.number.wrapping_add(1);
        self.history.pass_on();
        self.without_master = None;
        for (id, record) in &mut self.servers {
            (record.ahead, record.diverged) = (None, None);
            if *id != self.master {
                record.place = None;
            }
        }
    }

    /// All that the master had when it last answered, where it tells.
    pub(super) fn contents(&self) -> Option<&Position> {
        let latest = self.servers[&self.master].latest.as_ref()?;
        latest.contents.as_ref().or(latest.position.as_ref()).filter(|_| latest.role != ReportedRole::Slave)
    }

    /// Remembers a position that a slave has replayed and the master is not known to have, until the master is looked
    /// at again.
    pub(super) fn remember_ahead(
        &mut self,
        server: ServerId,
        log: SlaveLog,
        observed: &Observation,
        told: Instant,
    ) {
        let (contents, number) = (self.contents().cloned(), self.number);
        let is_comparable = log == SlaveLog::Masters
            && observed.role != ReportedRole::Master
            && !self.is_of_other_system(observed.system);
        let record = self.servers.entry(server).or_default();
        let Some(position) = observed.position.as_ref().filter(|_| is_comparable) else {
            record.ahead = None;
            return;
        };
        let lasts = |proof: &Diverged| proof.lasts(position, record.instance, contents.as_ref());
        if !record.diverged.as_ref().is_some_and(lasts) {
            record.diverged = None;
        }
        if contents.is_some_and(|contents| !contents.lacks(position)) {
            record.found_at(number, position);
        } else if !record.ahead.as_ref().is_some_and(|ahead| position.reaches(&ahead.position)) {
            record.ahead = Some(Ahead { position: position.clone(), told, missed: 0 });
        }
    }

    /// Finds transactions that a slave wrote for itself. The slave serves all the same, as it lacks nothing. Each
    /// source is reported once: if the slave is promoted, its transactions reach all other servers.
    pub(super) fn find_errant(&mut self, server: ServerId, observed: &Observation) -> GtidSet {
        let written = self.contents().zip(observed.position.as_ref());
        let Some(errant) = written.map(|(master, slave)| slave.written_beside(master)) else {
            return GtidSet::default();
        };
        let record = self.servers.entry(server).or_default();
        let known = std::mem::replace(&mut record.errant, errant.clone());
        errant.sources_beyond(&known)
    }

    /// Finds slaves that had replayed, before this look at the master, transactions that the master turns out not to
    /// have.
    pub(super) fn compare(&mut self, began: Instant) -> Vec<ServerId> {
        let Some(contents) = self.contents().cloned() else { return Vec::new() };
        let number = self.number;
        let mut diverged = Vec::new();
        for (id, record) in &mut self.servers {
            let Some(ahead) = record.ahead.take_if(|ahead| ahead.told <= began) else { continue };
            let missed = ahead.missed + 1;
            if !contents.lacks(&ahead.position) {
                record.found_at(number, &ahead.position);
            } else if missed < Diverged::looks(&ahead.position) {
                record.ahead = Some(Ahead { missed, ..ahead });
            } else {
                record.diverged = Some(Diverged { position: ahead.position, instance: record.instance });
                diverged.push(*id);
            }
        }
        diverged
    }
}
