//! What a choice depends on, gathered; and which of several slaves it is.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rocket_db_pools::Database;
use time::OffsetDateTime;

use super::{At, CatchUp, Failed, Nodes, Place};
use crate::backend::{Access, Backend};
use crate::choice::{Intent, Master, Pinned, Situation, Slaves, choose};
use crate::config::ReadFromSlaves;
use crate::health::{Health, Replay};
use crate::pin::{Needed, Pin, Window};

impl<D: Database<Pool: Backend>> Nodes<D> {
    /// Chooses a node for a session that has been let down by those of `failed`.
    pub(crate) fn choose(&self, intent: Intent, pin: Option<&Pin>, failed: Failed) -> Place {
        let office = self.monitor.office();
        let master = match failed.master || !self.seats[office].read_only.health().answers() {
            true => Master::Unusable,
            false => Master::Usable,
        };
        let (pinned, chosen) = match pin {
            _ if intent.is_write() => (Pinned::No, None),
            None => (Pinned::No, self.choose_any(master, failed)),
            Some(pin) => self.choose_pinned(pin, master, failed),
        };
        let (access, reason) = choose(Situation {
            intent,
            pinned,
            slaves: match chosen {
                _ if self.slaves.is_empty() => Slaves::NotConfigured,
                Some(_) => Slaves::Usable,
                None => Slaves::Unusable,
            },
            master,
            read_from_slaves: match self.reads_at_master.load(Ordering::Acquire) {
                true => ReadFromSlaves::Never,
                false => self.config.read_from_slaves,
            },
            pinned_without_master: self.config.pinned_without_master,
        });
        let at = match (access, chosen) {
            (Access::ReadWrite, _) => At::MasterReadWrite(office),
            (Access::ReadSlave, Some(index)) => At::Slave(index),
            (Access::ReadMaster | Access::ReadSlave, _) => At::MasterReadOnly(office),
        };
        Place { at, reason }
    }

    fn choose_any(&self, master: Master, failed: Failed) -> Option<usize> {
        let usable = self.draw(|index| self.is_usable(index, failed));
        match (usable, master) {
            (Some(_), _) | (None, Master::Usable) => usable,
            (None, Master::Unusable) => {
                let what_will_do = self.config.pinned_without_master;
                self.draw(|index| {
                    self.is_candidate(index, failed)
                        && self.slaves[index].health().is_last_resort(what_will_do)
                })
            }
        }
    }

    /// A slave that is known to have replayed what a client wrote, else one that may have soon. Where all
    /// have another history, a position says nothing, and only the window stands.
    fn choose_pinned(&self, pin: &Pin, master: Master, failed: Failed) -> (Pinned, Option<usize>) {
        let any = || self.choose_any(master, failed);
        let (Needed::Position(position), CatchUp::Untried) = (pin.needs(), failed.catch_up) else {
            return (Pinned::ToMaster, any());
        };
        // A slave that lags has the write when it is as old as that; nobody waits for longer.
        let age = (OffsetDateTime::now_utc() - pin.at).try_into().unwrap_or(Duration::ZERO);
        let in_time =
            |health: &Health| health.lag().is_none_or(|lag| lag <= age + self.config.catch_up_timeout);
        let draw = |is_one: &dyn Fn(&Health, Replay) -> bool| {
            self.draw(|index| {
                let health = self.slaves[index].health();
                self.is_usable(index, failed) && is_one(health, health.replay_of(position))
            })
        };
        let chosen = draw(&|_, replay| replay == Replay::Done)
            .or_else(|| draw(&|health, replay| replay == Replay::Behind && in_time(health)));
        match chosen {
            Some(index) => (Pinned::ToSlave, Some(index)),
            None if pin.window == Window::Open => (Pinned::ToMaster, any()),
            None if draw(&|_, replay| replay == Replay::Behind).is_some() => (Pinned::ToMaster, any()),
            None => (Pinned::No, any()),
        }
    }

    fn is_usable(&self, index: usize, failed: Failed) -> bool {
        self.is_candidate(index, failed) && self.slaves[index].health().is_usable()
    }

    /// A slave that took the master's place is none.
    fn is_candidate(&self, index: usize, failed: Failed) -> bool {
        !failed.slaves.contains(index) && self.monitor.office() != index + 1
    }

    /// The less busy, for its weight, of two slaves that are drawn by weight: even load without a view
    /// of the whole (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
    fn draw(&self, from: impl Fn(usize) -> bool) -> Option<usize> {
        let first = self.draw_one(&from)?;
        let Some(second) = self.draw_one(|index| index != first && from(index)) else { return Some(first) };
        let (a, b) = (&self.slaves[first], &self.slaves[second]);
        let busier = a.load() * b.weight > b.load() * a.weight;
        Some(if busier { second } else { first })
    }

    fn draw_one(&self, from: impl Fn(usize) -> bool) -> Option<usize> {
        let slaves = || (0..self.slaves.len()).filter(|index| from(*index));
        let weight = |index: &usize| self.slaves[*index].weight;
        let total: u32 = slaves().map(|index| weight(&index)).sum();
        if total == 0 {
            return None;
        }
        let mut drawn = fastrand::u32(..total);
        let hit = |index: &usize| match drawn.checked_sub(weight(index)) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        };
        // A node that went down between the two walks may leave the draw without a hit.
        slaves().find(hit).or_else(|| slaves().next())
    }
}
