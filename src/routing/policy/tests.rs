use super::Intent::*;
use super::Reason::{CaughtUp, MasterUnavailable, NoSlaves, OutsideShare, SlavesUnavailable, SwitchedOff};
use super::Target::*;
use super::*;

const USUAL: Situation = Situation {
    intent: ReadMethod,
    slaves: Slaves::Configured,
    pinned: Pinned::No,
    share: ReadShare::ALL,
    client: Client::Unknown(u64::MAX / 2),
    pinned_without_master: PinnedWithoutMaster::Stale,
};

/// The servers as a choice finds them.
#[derive(Clone, Copy, Debug)]
struct Found {
    master: Master,
    any: Option<u8>,
    master_as_slave: Option<u8>,
    for_pin: ForPin<u8>,
}

/// One slave for any client, and another one that has the pin's position.
const WELL: Found =
    Found { master: Master::Usable, any: Some(1), master_as_slave: None, for_pin: ForPin::Slave(2) };

impl Candidates for Found {
    type Slave = u8;

    fn master(&self) -> Master {
        self.master
    }

    fn any_slave(&self) -> Option<u8> {
        self.any
    }

    fn master_as_slave(&self) -> Option<u8> {
        self.master_as_slave
    }

    fn for_pin(&self) -> ForPin<u8> {
        self.for_pin
    }
}

#[test]
fn each_row_of_the_table() {
    let write = Situation { intent: WriteMethod, ..USUAL };
    let changes = Situation { intent: ChangesDatabase, ..USUAL };
    let asks = Situation { intent: ReadsDatabase, ..USUAL };
    let pinned = Situation { pinned: Pinned::Yes, ..USUAL };
    let alone = Situation { slaves: Slaves::NotConfigured, ..USUAL };
    let asked = |situation| Situation { share: ReadShare::ASKED, ..situation };
    let never = |situation| Situation { share: ReadShare::NONE, ..situation };
    let share = |share, situation| Situation { share: ReadShare::of_clients(share), ..situation };
    let fail = Situation { pinned_without_master: PinnedWithoutMaster::Fail, ..pinned };
    let asks_pinned = Situation { pinned: Pinned::Yes, ..asks };

    let none_has_it = Found { for_pin: ForPin::Master, ..WELL };
    let headless = Found { master: Master::Unusable, ..none_has_it };
    let standby = Found { master_as_slave: Some(3), ..headless };
    let nobody = Found { any: None, ..none_has_it };
    let void = Found { for_pin: ForPin::AnySlave, ..WELL };

    // Each entry begins with the number of the row that it is an example of.
    let table = [
        (1, write, WELL, Writes, Reason::WriteMethod),
        (1, changes, WELL, Writes, Reason::ChangesDatabase),
        (2, alone, WELL, MasterReads, NoSlaves),
        (2, Situation { pinned: Pinned::Yes, ..alone }, WELL, MasterReads, NoSlaves),
        (2, asked(alone), WELL, MasterReads, NoSlaves),
        (2, alone, headless, MasterReads, NoSlaves),
        (3, alone, standby, Slave(3), Reason::ReadMethod),
        (3, Situation { pinned: Pinned::Yes, ..alone }, standby, Slave(3), MasterUnavailable),
        (2, Situation { slaves: Slaves::NotConfigured, ..fail }, standby, MasterReads, NoSlaves),
        (3, asked(USUAL), standby, Slave(3), Reason::ReadMethod),
        (3, never(pinned), standby, Slave(3), MasterUnavailable),
        (3, share(0.1, USUAL), standby, Slave(3), Reason::ReadMethod),
        (3, asked(fail), standby, MasterReads, SwitchedOff),
        (3, asked(USUAL), WELL, MasterReads, SwitchedOff),
        (3, asked(pinned), WELL, MasterReads, SwitchedOff),
        (5, asked(asks), WELL, Slave(1), Reason::ReadsDatabase),
        (4, asked(asks_pinned), none_has_it, MasterReads, Reason::Pinned),
        (3, never(asks), WELL, MasterReads, SwitchedOff),
        (3, never(USUAL), WELL, MasterReads, SwitchedOff),
        (3, share(0.1, USUAL), WELL, MasterReads, OutsideShare),
        (3, share(0.1, pinned), WELL, MasterReads, OutsideShare),
        (3, share(0.0, USUAL), WELL, MasterReads, SwitchedOff),
        (5, share(0.9, USUAL), WELL, Slave(1), Reason::ReadMethod),
        (5, share(0.1, asks), WELL, Slave(1), Reason::ReadsDatabase),
        (4, share(0.9, pinned), WELL, Slave(2), CaughtUp),
        (2, share(0.1, alone), WELL, MasterReads, NoSlaves),
        (4, pinned, WELL, Slave(2), CaughtUp),
        (4, asks_pinned, WELL, Slave(2), CaughtUp),
        (4, pinned, Found { master: Master::Unusable, ..WELL }, Slave(2), CaughtUp),
        (4, pinned, none_has_it, MasterReads, Reason::Pinned),
        (4, asks_pinned, none_has_it, MasterReads, Reason::Pinned),
        (4, pinned, nobody, MasterReads, Reason::Pinned),
        (4, pinned, headless, Slave(1), MasterUnavailable),
        (4, pinned, Found { any: None, ..headless }, MasterReads, Reason::Pinned),
        (4, fail, headless, MasterReads, Reason::Pinned),
        (5, pinned, void, Slave(1), Reason::ReadMethod),
        (5, USUAL, WELL, Slave(1), Reason::ReadMethod),
        (5, asks, WELL, Slave(1), Reason::ReadsDatabase),
        (5, USUAL, headless, Slave(1), Reason::ReadMethod),
        (6, USUAL, nobody, MasterReads, SlavesUnavailable),
        (6, asks, nobody, MasterReads, SlavesUnavailable),
        (6, pinned, Found { any: None, ..void }, MasterReads, SlavesUnavailable),
    ];
    for (row, situation, found, target, reason) in table {
        assert_eq!(choose(situation, &found), (target, reason), "{situation:?} {found:?}");
        assert!(documented(row).contains(&format!("`{reason:?}`")), "row {row} does not tell {reason:?}");
    }
    for row in 1..=6 {
        assert!(table.iter().any(|(of, ..)| *of == row), "row {row} has no example");
    }
}

const DOCUMENTED: &str = include_str!("../table.md");

/// The text of a row in the documents, with its continuation lines.
fn documented(row: u8) -> String {
    let rows = DOCUMENTED.lines().skip(2).scan(0, |number, line| {
        *number = line.trim_start_matches('|').split('|').next()?.trim().parse().unwrap_or(*number);
        Some((*number, line))
    });
    rows.filter(|(number, _)| *number == row).map(|(_, line)| line).collect()
}

#[test]
fn the_guide_has_the_same_table() {
    assert!(include_str!("../../../docs/guide/routing.md").contains(DOCUMENTED));
}

#[test]
fn a_write_is_the_masters_whatever_else_holds() {
    for intent in [WriteMethod, ChangesDatabase] {
        for pinned in [Pinned::No, Pinned::Yes] {
            for slaves in [Slaves::NotConfigured, Slaves::Configured] {
                for master in [Master::Usable, Master::Unusable] {
                    let situation = Situation { intent, pinned, slaves, ..USUAL };
                    let found = Found { master, ..WELL };
                    assert_eq!(choose(situation, &found).0, Writes, "{situation:?}");
                }
            }
        }
    }
}

/// No slave is drawn before the table has said that one is wanted.
#[test]
fn no_slave_is_looked_at_for_what_the_master_serves() {
    struct Untouchable;

    impl Candidates for Untouchable {
        type Slave = u8;

        fn master(&self) -> Master {
            Master::Usable
        }

        fn any_slave(&self) -> Option<u8> {
            unreachable!("nobody asks")
        }

        fn master_as_slave(&self) -> Option<u8> {
            unreachable!("nobody asks")
        }

        fn for_pin(&self) -> ForPin<u8> {
            unreachable!("nobody asks")
        }
    }

    let write = Situation { intent: WriteMethod, pinned: Pinned::Yes, ..USUAL };
    let alone = Situation { slaves: Slaves::NotConfigured, pinned: Pinned::Yes, ..USUAL };
    let off = Situation { share: ReadShare::NONE, ..USUAL };
    assert_eq!(choose(write, &Untouchable).0, Writes);
    assert_eq!(choose(alone, &Untouchable).0, MasterReads);
    assert_eq!(choose(off, &Untouchable).0, MasterReads);
}

#[test]
fn changing_outranks_reading_outranks_the_method() {
    let table = [
        (MethodKind::Read, Declared::Nothing, ReadMethod),
        (MethodKind::Read, Declared::Reads, ReadsDatabase),
        (MethodKind::Read, Declared::Changes, ChangesDatabase),
        (MethodKind::Write, Declared::Nothing, WriteMethod),
        (MethodKind::Write, Declared::Reads, ReadsDatabase),
        (MethodKind::Write, Declared::Changes, ChangesDatabase),
    ];
    for (method, declared, intent) in table {
        assert_eq!(Intent::of(method, declared), intent, "{method:?} {declared:?}");
    }
    assert!(Declared::Changes > Declared::Reads && Declared::Reads > Declared::Nothing);
}
