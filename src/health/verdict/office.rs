//! The office of the master: which server holds it, which one succeeds, and the other servers that take writes.

use super::super::{NodeState, ServerId};
use super::{FirstLook, Master, Record, Succession, Verdict, Verdicts, Why, timeline};
use crate::backend::{Observation, ReportedRole};

impl Verdicts {
    pub(super) fn pass_mastership(&mut self, new: ServerId, succession: Succession) {
        let former = std::mem::replace(&mut self.master, new);
        self.confirmed = true;
        match succession {
            Succession::Promotion => {
                if let Some(former) = self.servers.get_mut(&former) {
                    former.was_master = true;
                }
                self.process = None;
                self.begin_history();
            }
            // The process was asked as a slave at this address. What it told as the master still holds.
            Succession::SameProcess if self.depends_on_role(new) => {
                let position = self.history.latest().cloned();
                if let Some(latest) = self.servers.get_mut(&new).and_then(|new| new.latest.as_mut()) {
                    latest.position = position;
                }
            }
            Succession::SameProcess => {}
        }
    }

    /// The state of a server that takes writes and is not the present master. If this process has seen the server as
    /// a slave, it was promoted. A master that answers a later look may write what the promoted server never gets. A
    /// server that was never seen as a slave may be an old master that came back. The other servers lack its latest
    /// writes.
    pub(super) fn beside_master(&self, server: ServerId) -> NodeState {
        let master = &self.servers[&self.master];
        let answers_since =
            |told| self.master() == Master::Answers && master.looked.is_some_and(|looked| looked >= told);
        match self.servers.get(&server).and_then(|record| record.promoted) {
            Some(told) if !answers_since(told) => NodeState::Promoted,
            _ => NodeState::SecondMaster,
        }
    }

    /// Judges promoted servers once more after a look at the master.
    pub(super) fn judge_promoted(&mut self, verdict: &mut Verdict) {
        for server in self.servers.keys().copied().collect::<Vec<_>>() {
            let judged = self.servers[&server].judged;
            let is_beside = matches!(judged, Some(NodeState::Promoted | NodeState::SecondMaster));
            if server == self.master || !is_beside || self.is_master_itself(server) {
                continue;
            }
            let state = self.beside_master(server);
            if judged != Some(state) {
                self.servers.entry(server).or_default().judged = Some(state);
                verdict.states.push((server, state, Why::Nothing));
            }
        }
    }

    /// True if the server's address leads to the master's own process. What that process does says nothing of another
    /// server.
    pub(super) fn is_master_itself(&self, server: ServerId) -> bool {
        let was = || self.servers.get(&server).is_some_and(|record| record.as_master > 0);
        server != self.master && (self.has_instance_of_master(server) || was())
    }

    pub(super) fn has_instance_of_master(&self, server: ServerId) -> bool {
        let instance = |server| self.servers.get(&server).and_then(|record: &Record| record.instance);
        server != self.master && instance(server).is_some() && instance(server) == instance(self.master)
    }

    /// Another server of the master's system that took writes when this process first looked at it, as the master does.
    /// Nothing tells which of the two was promoted, and writes to the wrong one are lost. So neither is written to
    /// before one of them is gone, or in recovery.
    pub(super) fn rival(&self) -> Option<ServerId> {
        if self.confirmed {
            return None;
        }
        let is_rival = |(id, record): &(&ServerId, &Record)| {
            let ours = record.system.is_some() && (self.system.is_none() || record.system == self.system);
            **id != self.master
                && record.first == FirstLook::TookWrites
                && record.may_write()
                && ours
                && !self.is_master_itself(**id)
        };
        self.servers.iter().find(is_rival).map(|(id, _)| *id)
    }

    /// Confirms the master, once all servers have been looked at, and the master alone takes writes.
    pub(super) fn confirm(&mut self) {
        self.confirmed |= self.master() == Master::Answers
            && self.servers.values().all(|record| record.first != FirstLook::Awaited)
            && self.rival().is_none();
    }

    /// The server that takes the place of the master. There is none while the master is reachable and takes writes. Nor
    /// is there one if two servers qualify, because nothing tells which of them the others follow.
    pub(super) fn successor(&self) -> Option<(ServerId, Succession)> {
        if let Some(server) = self.other_way() {
            return Some((server, Succession::SameProcess));
        }
        if self.servers[&self.master].may_write() {
            return None;
        }
        let succeeds = |(id, record): &(&ServerId, &Record)| {
            **id != self.master && !self.is_master_itself(**id) && self.succeeds(**id, record)
        };
        let mut successors = self.servers.iter().filter(succeeds);
        let (first, _) = successors.next()?;
        successors.next().is_none().then_some((*first, Succession::Promotion))
    }

    /// Another address that leads to the process of the present master. After a failover behind a balancer, the
    /// address of the slaves leads to the new master for some checks. Writes go to `url` as soon as it leads to that
    /// process. They go to any other address only once the master's address leads elsewhere, and is not `url`: the former
    /// master may still take writes at an address of its own while `url` is about to lead to the next one.
    fn other_way(&self) -> Option<ServerId> {
        let process = self.process?;
        // MariaDB and MySQL tell no role while they take writes.
        let leads_there = |id: &ServerId| {
            let record = &self.servers[id];
            let takes_writes = record.latest.is_some() && !record.reports(ReportedRole::Slave);
            *id != self.master && record.instance == Some(process) && takes_writes
        };
        let is_lost = self.master != self.configured && !self.servers[&self.master].may_write();
        let others = self.servers.keys().filter(|_| is_lost);
        std::iter::once(&self.configured).chain(others).find(|id| leads_there(id)).copied()
    }

    /// True if a server proves that it was promoted. It takes writes, and this process has seen it as a slave, or as
    /// the master's rival. Any other server may be an old master that came back. `url` needs neither proof, because its
    /// address may lead to another server by now.
    ///
    /// PostgreSQL begins a later timeline of the same system. `url` may be on the timeline of the present master,
    /// after a restart: then it has all that is known of that timeline. With MySQL and MariaDB, the server has all
    /// transactions that the master is known to have, also those that the master tells as a slave.
    fn succeeds(&self, server: ServerId, record: &Record) -> bool {
        let Some(latest) = &record.latest else { return false };
        let (master, is_configured) = (&self.servers[&self.master], server == self.configured);
        match self.history.latest().map(|known| (known, timeline(known))) {
            Some((known, Some(timeline))) => {
                let is_later =
                    |its: u32| its > timeline || is_configured && its == timeline && latest.has(known);
                (is_configured
                    || record.seen_in_recovery
                    || record.first == FirstLook::TookWrites && !self.confirmed)
                    && latest.role == ReportedRole::Master
                    && record.system.is_some()
                    && record.system == self.system
                    && record.timeline().is_some_and(is_later)
            }
            Some((known, None)) => {
                let told = master.latest.as_ref().and_then(|latest| latest.position.as_ref());
                record.left_recovery() && latest.has(known) && told.is_none_or(|told| latest.has(told))
            }
            None => self.leads_at_launch(record, latest),
        }
    }

    /// True if a server is the master though the configured one has never been seen as such. Either the configured one
    /// is a slave of it. Or the configured one was gone already when this process began, and the server has been
    /// promoted since. Without timelines, a server's position does not tell whether the others follow it: there, the
    /// promotion has to be seen.
    fn leads_at_launch(&self, record: &Record, latest: &Observation) -> bool {
        let configured = &self.servers[&self.master];
        // Another server that takes writes may not have been looked at yet.
        let is_found = |record: &Record| record.latest.is_some() || record.outcome.is_gone();
        if !self.servers.values().all(is_found) {
            return false;
        }
        let (may_lead, proves) = match record.timeline() {
            Some(_) => {
                (latest.role == ReportedRole::Master && record.system.is_some(), configured.latest.is_some())
            }
            None => (record.left_recovery(), false),
        };
        let follows = |slave: &Record| {
            let Some(its) = &slave.latest else { return true };
            match (record.timeline(), slave.timeline()) {
                (Some(ours), Some(theirs)) => slave.system == record.system && theirs <= ours,
                _ => its.position.as_ref().is_some_and(|theirs| latest.has(theirs)),
            }
        };
        may_lead && (proves || record.seen_in_recovery) && self.servers.values().all(follows)
    }
}
