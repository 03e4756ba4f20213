//! The invariants of a history, whatever happened to the servers: a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::operation::{Answer, Operation, Outcome, Spell, Work, Write};

/// The promise of an application to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Clients read their own writes. Without the master, a client that has just written is told to come back.
    OwnWrites,
    /// Reads need no master.
    AnyState,
    /// As `AnyState`, but all slaves share one address, which may lead to none of them while roles change.
    AnyStateAtOneAddress,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A client did not see what it had written.
    OwnWriteMissing,
    /// A client saw a value that was never written.
    NeverWritten,
    /// The later of two queries in one request saw an earlier state.
    StepBack,
    /// Two queries of one request asked different slaves.
    TwoSlaves,
    /// A write was refused as if it ran on a connection for reads.
    RefusedAsReadOnly,
    /// A read failed although a node could have served it.
    ReadFailed,
    /// An operation took too long.
    TooSlow,
    /// An acknowledged write is missing in the end.
    Lost,
    /// A write is there more than once in the end.
    RunTwice,
}

/// The longest time of an operation. It is far longer than any fault and the time to notice the fault.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The time that a long read takes. The read may have to be run again.
const LONG: Duration = Duration::from_secs(7);

/// The time until all applications have noticed that a master is back.
const RETURN: Duration = Duration::from_secs(8);

/// The violations in the operations of one application's clients, each with its operation.
pub fn check(
    promise: Promise,
    operations: &[Operation],
    without_master: &[Spell],
) -> Vec<(Violation, Operation)> {
    let mut clients = BTreeMap::<usize, Register>::new();
    let mut violations = Vec::new();
    for operation in operations {
        let register = clients.entry(operation.client).or_default();
        let mut violated = |violation| violations.push((violation, operation.clone()));
        let took = operation.returned - operation.invoked;
        let patience = if operation.work == Work::LongRead { PATIENCE + LONG * 3 } else { PATIENCE };
        if took > patience {
            violated(Violation::TooSlow);
        }
        match (&operation.work, &operation.outcome) {
            (Work::Write(value), outcome) => {
                register.attempted = register.attempted.max(*value);
                match outcome {
                    Outcome::Done(_) => register.acknowledged = register.acknowledged.max(*value),
                    Outcome::Failed(409) => violated(Violation::RefusedAsReadOnly),
                    Outcome::Failed(_) => {}
                }
            }
            (Work::Read | Work::LongRead, Outcome::Done(answers)) => {
                register.check(promise, answers).into_iter().for_each(violated);
            }
            (Work::Read | Work::LongRead, Outcome::Failed(_)) => {
                let excused = |spell: &Spell| {
                    operation.returned >= spell.began && operation.invoked <= spell.ended + RETURN
                };
                // A long read may lose one slave, then another, and then the master that it was led to.
                let needs_no_master = promise == Promise::AnyState && operation.work == Work::Read;
                if needs_no_master || !without_master.iter().any(excused) {
                    violated(Violation::ReadFailed);
                }
            }
        }
    }
    violations
}

/// The violations in the final log of writes.
pub fn check_end(operations: &[Operation], there: &[Write]) -> Vec<(Violation, Write)> {
    let mut seen = BTreeSet::new();
    let twice = there.iter().filter(|write| !seen.insert(**write)).map(|write| (Violation::RunTwice, *write));
    let twice: Vec<_> = twice.collect();
    let acknowledged =
        operations.iter().filter_map(|operation| match (&operation.work, &operation.outcome) {
            (Work::Write(value), Outcome::Done(_)) => {
                Some(Write { register: operation.client, value: *value })
            }
            _ => None,
        });
    let lost = acknowledged.filter(|write| !seen.contains(write)).map(|write| (Violation::Lost, write));
    lost.chain(twice).collect()
}

/// The values of a register that its only writer knows of.
#[derive(Default)]
struct Register {
    attempted: i64,
    acknowledged: i64,
}

impl Register {
    fn check(&self, promise: Promise, answers: &[Answer]) -> Vec<Violation> {
        let mut violations = Vec::new();
        if promise == Promise::OwnWrites && answers.iter().any(|answer| answer.value < self.acknowledged) {
            violations.push(Violation::OwnWriteMissing);
        }
        if answers.iter().any(|answer| answer.value > self.attempted) {
            violations.push(Violation::NeverWritten);
        }
        if answers.windows(2).any(|pair| pair[1].value < pair[0].value) {
            violations.push(Violation::StepBack);
        }
        let slaves: BTreeSet<_> =
            answers.iter().filter(|answer| answer.role == "slave").map(|answer| &answer.node).collect();
        if slaves.len() > 1 {
            violations.push(Violation::TwoSlaves);
        }
        violations
    }
}

mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u32, work: Work, outcome: Outcome) -> Operation {
        Operation { client: 1, work, invoked: MS * ms, returned: MS * (ms + 5), outcome }
    }

    fn written(ms: u32, value: i64) -> Operation {
        at(ms, Work::Write(value), Outcome::Done(Vec::new()))
    }

    fn answer(value: i64, node: &str) -> Answer {
        let role = if node == "master" { "master" } else { "slave" };
        Answer { value, node: node.into(), role: role.into(), reason: "Pinned".into() }
    }

    fn read(ms: u32, answers: [(i64, &str); 2]) -> Operation {
        at(ms, Work::Read, Outcome::Done(answers.map(|(value, node)| answer(value, node)).into()))
    }

    fn failed(ms: u32, work: Work, status: u16) -> Operation {
        at(ms, work, Outcome::Failed(status))
    }

    fn found(promise: Promise, operations: &[Operation]) -> Vec<Violation> {
        let gone = [Spell { began: MS * 10_000, ended: MS * 20_000 }];
        check(promise, operations, &gone).into_iter().map(|(violation, _)| violation).collect()
    }

    #[test]
    fn a_clean_history_passes() {
        let history = [
            read(0, [(0, "a"), (0, "a")]),
            written(10, 1),
            read(20, [(1, "master"), (1, "master")]),
            failed(30, Work::Write(2), 500),
            // The failed write may have been done or not.
            read(40, [(1, "a"), (2, "master")]),
            read(50, [(2, "b"), (2, "b")]),
            failed(12_000, Work::Write(3), 503),
            failed(12_000, Work::Read, 503),
        ];
        assert_eq!(found(Promise::OwnWrites, &history), []);
    }

    #[test]
    fn each_violation_is_found() {
        use Violation::*;

        let table = [
            (vec![written(0, 1), read(10, [(0, "a"), (1, "master")])], OwnWriteMissing),
            (vec![written(0, 1), read(10, [(2, "a"), (2, "a")])], NeverWritten),
            (vec![failed(0, Work::Write(1), 500), read(10, [(1, "a"), (0, "a")])], StepBack),
            (vec![read(0, [(0, "a"), (0, "b")])], TwoSlaves),
            (vec![failed(0, Work::Write(1), 409)], RefusedAsReadOnly),
            (vec![failed(0, Work::Read, 503)], ReadFailed),
        ];
        for (history, violation) in table {
            assert_eq!(found(Promise::OwnWrites, &history), [violation]);
        }
        assert_eq!(found(Promise::AnyState, &[failed(12_000, Work::Read, 503)]), [ReadFailed]);
        assert_eq!(found(Promise::AnyState, &[failed(12_000, Work::LongRead, 503)]), []);
        assert_eq!(found(Promise::AnyState, &[failed(0, Work::LongRead, 503)]), [ReadFailed]);
        assert_eq!(found(Promise::AnyState, &[written(0, 1), read(10, [(0, "a"), (0, "a")])]), []);
        let slow = Operation { returned: PATIENCE + MS * 10, ..read(0, [(0, "a"), (0, "a")]) };
        assert_eq!(found(Promise::OwnWrites, &[slow]), [TooSlow]);
    }

    #[test]
    fn violations_of_the_final_log_are_found() {
        let history = [written(0, 1), written(10, 2), failed(20, Work::Write(3), 500)];
        let write = |value| Write { register: 1, value };
        assert_eq!(check_end(&history, &[write(1), write(2)]), []);
        assert_eq!(check_end(&history, &[write(1), write(2), write(3)]), []);
        assert_eq!(check_end(&history, &[write(1)]), [(Violation::Lost, write(2))]);
        assert_eq!(
            check_end(&history, &[write(1), write(2), write(3), write(3)]),
            [(Violation::RunTwice, write(3))]
        );
    }
}
