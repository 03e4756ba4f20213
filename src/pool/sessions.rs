//! What the monitor learns about a pool's connections in use, and how it ends those that are dead.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use super::connection::ConnectionState;
use super::custody::Ended;
use crate::backend::{Activity, Driver, Instance, SessionId};

impl<DB: Driver> Pool<DB> {
    /// Ends what is under way on connections of earlier generations.
    pub(crate) fn end_earlier_generations(&self, why: Ended) {
        let present = self.health.generation();
        self.for_each_open(|state| {
            if state.generation() < present {
                state.end(why);
            }
        });
    }

    /// Ends what is under way on connections to other instances than this one, if they have been silent for `silence`.
    pub(crate) fn end_other_instances(&self, instance: Instance, silence: Duration) {
        self.for_each_open(|state| {
            if is_silent_elsewhere(state, instance, silence) {
                state.end(Ended::Dead);
            }
        });
    }

    /// True if a connection to another instance has been silent for `silence`, and has not been ended.
    pub(crate) fn leads_elsewhere(&self, instance: Instance, silence: Duration) -> bool {
        let mut elsewhere = false;
        self.for_each_open(|state| elsewhere |= is_silent_elsewhere(state, instance, silence));
        elsewhere
    }

    /// Whether a connection to another instance has answered in this time.
    pub(crate) fn has_heard_of_other(&self, instance: Instance, time: Range<Instant>) -> bool {
        let mut heard = false;
        self.for_each_open(|state| {
            heard |= state.instance().is_some_and(|other| other != instance)
                && state.custody.ended().is_none()
                && time.contains(&state.verified());
        });
        heard
    }

    /// The sessions whose connections have been busy, or held by a handler, for longer than `patience`.
    pub(crate) fn questionable_sessions(&self, patience: Duration) -> Vec<ServerSession<DB>> {
        let mut sessions = Vec::new();
        self.for_each_open(|state| {
            let waits = state.busy_for().or(state.custody.held_for());
            if waits.is_some_and(|waits| waits > patience)
                && state.custody.ended().is_none()
                && let (Some(instance), Some(id)) = (state.instance(), state.session())
            {
                sessions.push(ServerSession { instance, id, state: state.clone() });
            }
        });
        sessions
    }
}

fn is_silent_elsewhere<DB: Driver>(
    state: &ConnectionState<DB>,
    instance: Instance,
    silence: Duration,
) -> bool {
    state.instance().is_some_and(|other| other != instance)
        && state.custody.ended().is_none()
        && state.verified().elapsed() >= silence
}

/// A session at a server, whose connection may be dead.
pub(crate) struct ServerSession<DB: Driver> {
    pub(crate) instance: Instance,
    pub(crate) id: SessionId,
    state: Arc<ConnectionState<DB>>,
}

impl<DB: Driver> ServerSession<DB> {
    /// Ends the connection if it is dead, by what the server says of the session. It is dead if the server does not
    /// know the session. It also is if both sides have been waiting for each other for longer than twice `patience`. A
    /// handler that holds a connection without a statement may well let the server wait.
    pub(crate) fn judge(&self, activity: Activity, patience: Duration) {
        let is_dead = match activity {
            Activity::Unknown => true,
            // Twice as long: a large statement is idleness to its server until it has arrived as a whole.
            Activity::Idle(idle) => {
                idle > patience * 2 && self.state.busy_for().is_some_and(|waits| waits > patience * 2)
            }
            Activity::Busy | Activity::Hidden => false,
        };
        if is_dead {
            self.state.end(Ended::Dead);
        }
    }
}
