//! A breadth-first search through all states of a model. The first violation that it finds is one with the fewest
//! steps.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::hash::Hasher;
use std::time::{Duration, Instant};

pub trait Model: Clone {
    type Action: Clone + Display;
    type Event: Ord;

    /// A hash that is equal for states with equal futures.
    fn fingerprint(&self) -> u64;

    fn actions(&self) -> Vec<Self::Action>;

    /// Takes a step. The error says what is wrong with the step or its result.
    fn step(&mut self, action: &Self::Action) -> Result<(), String>;

    /// The event that the latest step has shown.
    fn event(&self) -> Option<Self::Event>;

    /// Checks a state. The error says what is wrong. `checked` has the hashes of what was checked in other states.
    fn check(&self, checked: &mut HashSet<u64>) -> Result<(), String>;
}

pub struct Search<E> {
    pub states: usize,
    pub steps: usize,
    pub took: Duration,
    /// How often each event happened.
    pub events: BTreeMap<E, usize>,
    pub violation: Option<Violation>,
}

#[derive(Debug)]
pub struct Violation {
    pub what: String,
    pub trace: Vec<String>,
}

impl Violation {
    /// The violation and the steps that lead to it, one a line.
    pub fn tell(&self) -> String {
        let steps = self.trace.iter().enumerate();
        let steps: String = steps.map(|(number, step)| format!("{:>4}. {step}\n", number + 1)).collect();
        format!("{}, after these steps:\n{steps}", self.what)
    }
}

/// Searches all states that can be reached in this many steps.
pub fn search<M: Model>(start: M, most_steps: usize) -> Search<M::Event> {
    let began = Instant::now();
    let (mut seen, mut checked) = (HashSet::new(), HashSet::new());
    // How each state was reached: the state before, and the step from there.
    let mut ways: Vec<Option<(usize, M::Action)>> = Vec::new();
    let mut frontier = Vec::new();
    seen.insert(start.fingerprint());
    frontier.push((ways.len(), start));
    ways.push(None);
    let mut steps = 0;
    let mut events = BTreeMap::new();
    for _ in 0..most_steps {
        for (way, state) in std::mem::take(&mut frontier) {
            for action in state.actions() {
                steps += 1;
                let mut next = state.clone();
                let mut is_new = false;
                let stepped = next.step(&action).and_then(|()| {
                    is_new = seen.insert(next.fingerprint());
                    if is_new { next.check(&mut checked) } else { Ok(()) }
                });
                if let Err(what) = stepped {
                    let violation = Some(Violation { what, trace: trace(&ways, way, &action) });
                    return Search { states: ways.len(), steps, took: began.elapsed(), events, violation };
                }
                if let Some(event) = next.event() {
                    *events.entry(event).or_default() += 1;
                }
                if is_new {
                    frontier.push((ways.len(), next));
                    ways.push(Some((way, action)));
                }
            }
        }
    }
    Search { states: ways.len(), steps, took: began.elapsed(), events, violation: None }
}

fn trace<A: Clone + Display>(ways: &[Option<(usize, A)>], from: usize, last: &A) -> Vec<String> {
    let mut trace = vec![last.to_string()];
    let mut at = from;
    while let Some((before, action)) = &ways[at] {
        trace.push(action.to_string());
        at = *before;
    }
    trace.reverse();
    trace
}

/// A hash by folded multiplication, as in wyhash. Nothing is done more often than hashing, and the standard hasher is
/// slow unless it is optimised. 64 bits are enough for some hundred thousand states.
pub struct Fold(u64);

impl Fold {
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0xa076_1d64_78bd_642f)
            .wrapping_mul(0xe703_7ed1_a0b4_28db_8ebc_6af0_9c88_c6e3);
        self.0 = (product as u64 ^ (product >> 64) as u64).rotate_left(29);
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.mix(bytes.len() as u64);
        bytes.iter().for_each(|byte| self.mix(u64::from(*byte)));
    }

    fn write_u8(&mut self, number: u8) {
        self.mix(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.mix(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.mix(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.mix(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.mix(number as u64);
    }
}
