//! Locks and wakers. Unit tests of state that threads share explore all orders of their steps. In such a test, a task
//! may be interrupted before each lock, after it, and before a waker is touched.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::task::Waker;

use rocket::futures::task;

#[cfg(test)]
pub(crate) mod explore;

#[cfg(test)]
use explore::step;

#[cfg(not(test))]
fn step() {}

/// A lock that ignores poison. INVARIANT: code that holds it cannot panic halfway through a change.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        step();
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        MutexGuard { guard, _unlocked: Unlocked::new() }
    }
}

/// The fields are dropped in this order.
pub(crate) struct MutexGuard<'a, T> {
    guard: std::sync::MutexGuard<'a, T>,
    _unlocked: Unlocked,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(test)]
use explore::Unlocked;

#[cfg(not(test))]
struct Unlocked;

#[cfg(not(test))]
impl Unlocked {
    fn new() -> Self {
        Self
    }
}

/// Wakes the task that registered last.
#[derive(Debug, Default)]
pub(crate) struct AtomicWaker(task::AtomicWaker);

impl AtomicWaker {
    pub(crate) fn register(&self, waker: &Waker) {
        step();
        self.0.register(waker);
    }

    pub(crate) fn wake(&self) {
        step();
        self.0.wake();
    }
}
