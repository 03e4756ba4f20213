//! What a probe changes. Every result of a probe goes through [`Fleet::apply`]: [`Verdicts`] judges it, and the states
//! of servers, the mastership and the log follow. Nothing here has a connection. The monitor carries out the
//! [`Effects`] on the connections of its pools, and `tests/model` on the connections of its world.

use std::collections::BTreeMap;
use std::sync::Arc;

use log::{error, warn};

use super::state::{Circumstances, Remedies};
use super::verdict::{Outcome, Verdict};
use super::{
    FAILURES_BEFORE_FAILOVER, Finding, Health, Look, Mastership, NodeState, Role, ServerId, Subject,
    Succession, Verdicts,
};
use crate::backend::{Access, Instance, Observation, ReportedRole};
use crate::config::Checks;

/// A probe of a server that has ended.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) look: Look,
    /// [`Health::probe_access`] when the probe began.
    pub(crate) asked: Access,
    /// The instance that the monitor's connection leads to.
    pub(crate) instance: Option<Instance>,
    pub(crate) answer: Answer,
}

/// The answer of a server to a probe.
#[derive(Debug)]
pub(crate) enum Answer {
    Failed(sqlx::Error),
    /// The server answers, but has no connection to spare for the monitor.
    Full,
    Observed(Observation),
}

/// What is left to do on connections after a probe.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    ends: Vec<(ServerId, Ends)>,
    /// The server that was the master until now, if another one is.
    pub(crate) former_master: Option<ServerId>,
    /// The number of probes in a row that failed, up to [`FAILURES_BEFORE_FAILOVER`].
    pub(crate) failures: u32,
    /// True if the next probe needs a new connection, because a new one may lead to another server.
    pub(crate) reconnect: bool,
}

/// The statements that have to end on connections of earlier generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Reads, because the server does not answer. They may run elsewhere.
    Reads,
    /// All, because no answer will ever come.
    All,
}

impl Effects {
    /// The statements that have to end on the connections to a server that serve this access.
    pub(crate) fn ends(&self, server: ServerId, access: Access) -> Option<Ends> {
        let is_meant =
            |(id, ends): &&(ServerId, Ends)| *id == server && (*ends == Ends::All || !access.writes());
        let ends = self.ends.iter().filter(is_meant).map(|(_, ends)| *ends);
        ends.max_by_key(|ends| *ends == Ends::All)
    }
}

/// The servers of one database, as this process knows them.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) verdicts: Verdicts,
    mastership: Arc<Mastership>,
    remedies: Remedies,
    /// The latest probes of addresses that are not judged: a `read_url`, and servers that are leaving.
    unjudged: BTreeMap<ServerId, Outcome>,
}

impl Fleet {
    /// The fleet of these servers, without a `read_url`.
    pub(crate) fn new(
        servers: &[ServerId],
        mastership: Arc<Mastership>,
        checks: Checks,
        remedies: Remedies,
    ) -> Self {
        let verdicts = Verdicts::new(mastership.term().master, servers, checks);
        Self { verdicts, mastership, remedies, unjudged: BTreeMap::new() }
    }

    /// A copy that follows a mastership of its own, for a search through states.
    pub(crate) fn copy(&self, mastership: Arc<Mastership>) -> Self {
        let Self { verdicts, mastership: _, remedies, unjudged } = self;
        Self { verdicts: verdicts.clone(), mastership, remedies: *remedies, unjudged: unjudged.clone() }
    }

    /// Forgets a server that has left.
    pub(crate) fn forget(&mut self, server: ServerId) {
        self.unjudged.remove(&server);
    }

    /// Takes note of a probe. `find` finds the health of a server.
    ///
    /// INVARIANT: the effects of a probe are carried out before the next one is applied, so that an earlier one is never
    /// the last word.
    pub(crate) fn apply(
        &mut self,
        server: &Health,
        probe: Probe,
        find: impl Fn(ServerId) -> Option<Arc<Health>>,
    ) -> Effects {
        let Probe { look, asked, instance, answer } = probe;
        if matches!(answer, Answer::Observed(_)) && asked != server.probe_access() {
            // The role has changed meanwhile. A master and a slave are asked for different positions.
            server.request_probe();
            return Effects::default();
        }
        let finding = self.finding(server, answer);
        let mut effects = Effects::default();
        let is_judged = server.subject == Subject::Server && self.verdicts.knows(server.id);
        let outcome = if is_judged {
            if let Finding::Observed(_) = finding {
                self.verdicts.record_instance(server.id, instance);
            }
            let verdict = self.verdicts.judge(server.id, server.log, look, &finding);
            self.follow(server, &verdict, &find, &mut effects);
            if let (Role::Slave, Finding::Observed(Observation { position: Some(position), .. })) =
                (server.role(), &finding)
            {
                server.record_position(position.clone(), instance, look.began);
            }
            self.verdicts.outcome(server.id)
        } else {
            match &finding {
                Finding::Observed(Observation { role: ReportedRole::Slave, .. })
                    if server.subject == Subject::ReadUrl =>
                {
                    server.found(NodeState::Standby, self.remedies.no_writes);
                }
                Finding::Observed(_) => server.found(NodeState::Up, ""),
                Finding::Full | Finding::Failed | Finding::NotCopied => {}
            }
            let outcome = self.unjudged.entry(server.id).or_default();
            *outcome = outcome.after(&finding);
            *outcome
        };
        if finding == Finding::Full {
            server.found_full();
        }
        effects.failures = outcome.failures();
        match effects.failures {
            0 => {}
            FAILURES_BEFORE_FAILOVER.. => effects.ends.push((server.id, Ends::All)),
            1.. => effects.ends.push((server.id, Ends::Reads)),
        }
        effects.reconnect = server.state().leads_elsewhere();
        server.probes.send_modify(|probes| *probes += 1);
        effects
    }

    fn finding(&self, server: &Health, answer: Answer) -> Finding {
        match answer {
            Answer::Observed(_) if server.is_follower() && server.copied().is_none() => Finding::NotCopied,
            Answer::Observed(mut observed) => {
                let told = self.verdicts.position_for_slaves(&mut observed);
                observed.position = told.or_else(|| server.copied());
                Finding::Observed(observed)
            }
            Answer::Full => Finding::Full,
            Answer::Failed(error) => {
                server.went_down(&error);
                Finding::Failed
            }
        }
    }

    /// Follows a verdict: the mastership, the states of servers, and the log.
    fn follow(
        &mut self,
        server: &Health,
        verdict: &Verdict,
        find: &impl Fn(ServerId) -> Option<Arc<Health>>,
        effects: &mut Effects,
    ) {
        server.set_lag(verdict.lag);
        if !verdict.errant.is_empty() {
            warn!(
                "The {server} has transactions that the master lacks, from these sources: {}. It serves all the same. If \
                 they were written there, all other servers get them once it is promoted: make it anew from a copy of the \
                 master, and let nothing write there (`super_read_only`).",
                verdict.errant,
            );
        }
        if let Some(new) = verdict.new_master.and_then(find)
            && let Some(old) = find(self.mastership.term().master)
        {
            match (verdict.succession, old.state()) {
                (Succession::SameProcess, _) => {
                    warn!("The {new} leads to the same server as the {old}: writes go there from now on.");
                }
                (Succession::Promotion, NodeState::Suspect | NodeState::Down) => error!(
                    "The {old} is gone, and the {new} was promoted: writes go there from now on. Name it as `url` before \
                     the next launch."
                ),
                (Succession::Promotion, _) => error!(
                    "The {old} takes no writes, and the {new} does: writes go there from now on. Name it as `url` before \
                     the next launch."
                ),
            }
            self.mastership.pass_to(new.id);
            old.changed_role();
            new.changed_role();
            // Connections that come back from the old master are not written on any more.
            old.next_generation();
            if verdict.succession == Succession::Promotion {
                effects.ends.push((old.id, Ends::All));
            }
            effects.former_master = Some(old.id);
        }
        for (id, state, why) in &verdict.states {
            let Some(server) = find(*id) else { continue };
            let circumstances = Circumstances {
                why: *why,
                remedies: self.remedies,
                master: find(self.mastership.term().master).map(|master| master.state()),
                follow_promotion: self.verdicts.follows_promotion(),
                find,
            };
            server.found(*state, server.explain(*state, &circumstances));
        }
    }
}
