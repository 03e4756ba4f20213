use std::time::Duration;

use super::Letdown::*;
use super::PinKind::*;

use super::*;
use crate::routing::Declared::{Changes, Nothing, Reads};
use crate::routing::MethodKind::{Read, Write};

const SLAVE: ServerId = ServerId(1);
const OTHER_SLAVE: ServerId = ServerId(2);

use Step::*;

/// What happens to a request, and what follows at once.
#[derive(Clone, Copy, Debug)]
enum Step {
    Declares(Declared),
    /// A statement begins on a connection for reads of the slave, to this instance.
    Asks(&'static str, Start),
    AsksMaster(Start),
    WritesAt(&'static str, Start),
    TakesBack,
    TakesBackWrite,
    MissesAnswer,
    FindsBehind,
    /// The last field says whether another server may be asked.
    IsLetDown(Access, ServerId, Letdown, bool),
    Replies {
        in_use: bool,
        pin: PinKind,
    },
}

/// What is known in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    writes: bool,
    pin: PinKind,
    /// The slaves that may still be asked.
    slaves: [bool; 2],
    /// The master's connections for reads may be asked.
    master: bool,
    catch_up: CatchUp,
}

const FRESH: End =
    End { writes: false, pin: NoPin, slaves: [true; 2], master: true, catch_up: CatchUp::Untried };

fn instance(name: &str) -> Option<Instance> {
    Some(Instance::of(name))
}

/// Each start is a second after the one before.
fn run(origin: Instant, method: MethodKind, steps: &[Step]) -> End {
    let (mut progress, mut now) = (Progress::new(method), origin);
    for step in steps {
        let mut start = |access, instance| {
            let started = progress.start(access, instance, || now);
            now += Duration::from_secs(1);
            started
        };
        match *step {
            Declares(declared) => progress.declare(declared),
            Asks(at, follows) => assert_eq!(start(Access::SlaveReads, instance(at)), follows, "{steps:?}"),
            AsksMaster(follows) => assert_eq!(start(Access::MasterReads, None), follows, "{steps:?}"),
            WritesAt(at, follows) => assert_eq!(start(Access::Writes, instance(at)), follows, "{steps:?}"),
            TakesBack => progress.take_back(Access::SlaveReads),
            TakesBackWrite => progress.take_back(Access::Writes),
            MissesAnswer => progress.miss_answer(),
            FindsBehind => progress.found_behind(),
            IsLetDown(access, server, how, follows) => {
                assert_eq!(progress.fail(access, server, how), follows, "{steps:?}");
            }
            Replies { in_use, pin } => assert_eq!(progress.answer(in_use), pin, "{steps:?}"),
        }
    }
    let failed = progress.failed();
    End {
        writes: progress.intent().is_write(),
        pin: progress.pin_kind(),
        slaves: [SLAVE, OTHER_SLAVE].map(|slave| !failed.slaves.contains(slave)),
        master: !progress.is_exhausted(Access::MasterReads),
        catch_up: failed.catch_up,
    }
}

#[test]
fn what_a_request_does_is_what_follows() {
    use Access::{MasterReads, SlaveReads, Writes};
    use Start::{Allowed, AllowedWithoutPin, Moved};

    let origin = Instant::now();
    let position = |at| Position { first: origin, at: instance(at) };
    let wrote = |pin| End { writes: true, pin, ..FRESH };
    let read = End { slaves: [false; 2], ..FRESH };
    #[rustfmt::skip]
    let table: &[(MethodKind, &[Step], End)] = &[
        // Intent: it follows the method and the declarations, of which none lowers an earlier one.
        (Read, &[], FRESH),
        (Write, &[], wrote(NoPin)),
        (Read, &[Declares(Changes)], wrote(NoPin)),
        (Read, &[Declares(Changes), Declares(Reads)], wrote(NoPin)),
        (Write, &[Declares(Reads)], FRESH),
        (Write, &[Declares(Reads), Declares(Nothing)], FRESH),
        (Write, &[WritesAt("a", Allowed), Declares(Reads)], wrote(position("a"))),
        (Write, &[Declares(Reads), Asks("s", Allowed), Declares(Changes)], wrote(NoPin)),

        // Pins: with the time of the first write and the server of the latest one. A window pin where an answer is
        // missing.
        (Write, &[WritesAt("a", Allowed), WritesAt("b", Allowed)], wrote(position("b"))),
        (Write, &[WritesAt("a", Allowed), MissesAnswer], wrote(Window)),
        (Write, &[WritesAt("a", Allowed), MissesAnswer, WritesAt("a", Allowed)], wrote(Window)),
        (Read, &[Asks("s", Allowed), MissesAnswer], FRESH),

        // A write that the server refused does not change what the other writes leave.
        (Write, &[WritesAt("a", Allowed), TakesBackWrite], wrote(NoPin)),
        (Write, &[WritesAt("a", Allowed), TakesBackWrite, WritesAt("a", Allowed)],
            wrote(Position { first: origin + Duration::from_secs(1), at: instance("a") })),
        (Write, &[WritesAt("a", Allowed), WritesAt("a", Allowed), TakesBackWrite], wrote(position("a"))),
        (Write, &[WritesAt("a", Allowed), MissesAnswer, WritesAt("a", Allowed), TakesBackWrite], wrote(Window)),

        // The reply carries the pin that it needs. A later write without a pin is reported once.
        (Read, &[Asks("s", Allowed), Replies { in_use: false, pin: NoPin }], FRESH),
        (Read, &[Asks("s", Allowed), Replies { in_use: true, pin: NoPin }, Asks("s", Allowed)], FRESH),
        (Write, &[Replies { in_use: false, pin: NoPin }, WritesAt("a", AllowedWithoutPin), WritesAt("a", Allowed)],
            wrote(position("a"))),
        (Write, &[Replies { in_use: true, pin: Window }, WritesAt("a", Allowed)], wrote(position("a"))),
        (Write, &[WritesAt("a", Allowed), Replies { in_use: false, pin: position("a") }], wrote(position("a"))),
        (Write, &[WritesAt("a", Allowed), Replies { in_use: true, pin: Window }], wrote(position("a"))),
        (Write, &[WritesAt("a", Allowed), MissesAnswer, Replies { in_use: false, pin: Window }], wrote(Window)),

        // A server lets the request down: others are asked, but no other slave once rows have been returned.
        (Read, &[IsLetDown(SlaveReads, SLAVE, Busy, true)], End { slaves: [false, true], ..FRESH }),
        (Read, &[Asks("s", Allowed), TakesBack, IsLetDown(SlaveReads, SLAVE, Unreachable, true)],
            End { slaves: [false, true], ..FRESH }),
        (Read, &[Asks("s", Allowed), IsLetDown(SlaveReads, SLAVE, Unreachable, true)], read),
        (Read, &[Asks("s", Allowed), Asks("s", Allowed), TakesBack, IsLetDown(SlaveReads, SLAVE, Busy, true)], read),
        (Read, &[IsLetDown(MasterReads, ServerId(0), Unreachable, true)], End { master: false, ..FRESH }),
        (Read, &[IsLetDown(MasterReads, ServerId(0), Busy, false)], FRESH),
        // A slave that was merely busy is asked once more if the master cannot be reached.
        (Read, &[IsLetDown(SlaveReads, SLAVE, Busy, true), IsLetDown(MasterReads, ServerId(0), Unreachable, true)],
            End { master: false, ..FRESH }),
        (Read, &[IsLetDown(SlaveReads, SLAVE, Busy, true), IsLetDown(MasterReads, ServerId(0), Unreachable, true),
            IsLetDown(SlaveReads, SLAVE, Busy, true), IsLetDown(MasterReads, ServerId(0), Unreachable, true)],
            End { slaves: [false, true], master: false, ..FRESH }),
        (Read, &[IsLetDown(SlaveReads, SLAVE, Unreachable, true), IsLetDown(MasterReads, ServerId(0), Unreachable, true)],
            End { slaves: [false, true], master: false, ..FRESH }),
        (Write, &[IsLetDown(Writes, ServerId(0), Unreachable, false)], wrote(NoPin)),
        (Write, &[IsLetDown(Writes, ServerId(0), Busy, false)], wrote(NoPin)),

        // Behind an address of several servers, a request reads from only one of them.
        (Read, &[Asks("s", Allowed), Asks("t", Moved), Asks("s", Allowed)], FRESH),
        (Read, &[Asks("s", Allowed), TakesBack, Asks("t", Allowed)], FRESH),
        (Read, &[Asks("s", Allowed), AsksMaster(Allowed)], FRESH),
        (Read, &[FindsBehind], End { catch_up: CatchUp::InVain, ..FRESH }),
        (Read, &[Asks("s", Allowed), FindsBehind], End { catch_up: CatchUp::InVain, ..read }),
        (Read, &[TakesBack, Asks("s", Allowed), IsLetDown(SlaveReads, SLAVE, Busy, true)], read),
    ];
    for (method, steps, end) in table {
        assert_eq!(run(origin, *method, steps), *end, "{method:?} {steps:?}");
    }
}
