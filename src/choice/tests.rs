use super::Intent::*;
use super::Reason::{CaughtUp, MasterUnavailable, NoSlaves, SlavesUnavailable, SwitchedOff};
use super::*;
use crate::backend::Access::*;

const USUAL: Situation = Situation {
    intent: ReadMethod,
    pinned: Pinned::No,
    slaves: Slaves::Usable,
    master: Master::Usable,
    read_from_slaves: ReadFromSlaves::Auto,
    pinned_without_master: PinnedWithoutMaster::Stale,
};

#[test]
fn each_row_of_the_table() {
    let write = Situation { intent: WriteMethod, ..USUAL };
    let changes = Situation { intent: ChangesDatabase, ..USUAL };
    let asked = Situation { read_from_slaves: ReadFromSlaves::Asked, ..USUAL };
    let pinned = Situation { pinned: Pinned::ToMaster, ..USUAL };
    let never = Situation { read_from_slaves: ReadFromSlaves::Never, ..USUAL };
    let caught_up = Situation { pinned: Pinned::ToSlave, ..USUAL };
    let alone = Situation { slaves: Slaves::NotConfigured, ..USUAL };
    let unusable = Situation { slaves: Slaves::Unusable, ..USUAL };
    let headless = Situation { master: Master::Unusable, ..USUAL };
    let pinned_headless = Situation { pinned: Pinned::ToMaster, ..headless };
    let pinned_fail = Situation { pinned_without_master: PinnedWithoutMaster::Fail, ..pinned_headless };

    let table = [
        (write, ReadWrite, Reason::WriteMethod),
        (changes, ReadWrite, Reason::ChangesDatabase),
        (alone, ReadMaster, NoSlaves),
        (Situation { pinned: Pinned::ToMaster, ..alone }, ReadMaster, NoSlaves),
        (Situation { read_from_slaves: ReadFromSlaves::Asked, ..alone }, ReadMaster, NoSlaves),
        (asked, ReadMaster, SwitchedOff),
        (Situation { pinned: Pinned::ToMaster, ..asked }, ReadMaster, SwitchedOff),
        (Situation { intent: ReadsDatabase, ..asked }, ReadSlave, Reason::ReadsDatabase),
        (Situation { intent: ReadsDatabase, pinned: Pinned::ToMaster, ..asked }, ReadMaster, Reason::Pinned),
        (Situation { intent: ReadsDatabase, ..never }, ReadMaster, SwitchedOff),
        (never, ReadMaster, SwitchedOff),
        (caught_up, ReadSlave, CaughtUp),
        (Situation { intent: ReadsDatabase, ..caught_up }, ReadSlave, CaughtUp),
        (Situation { master: Master::Unusable, ..caught_up }, ReadSlave, CaughtUp),
        (Situation { read_from_slaves: ReadFromSlaves::Asked, ..caught_up }, ReadMaster, SwitchedOff),
        (pinned, ReadMaster, Reason::Pinned),
        (Situation { intent: ReadsDatabase, ..pinned }, ReadMaster, Reason::Pinned),
        (Situation { slaves: Slaves::Unusable, ..pinned }, ReadMaster, Reason::Pinned),
        (pinned_headless, ReadSlave, MasterUnavailable),
        (Situation { slaves: Slaves::Unusable, ..pinned_headless }, ReadMaster, Reason::Pinned),
        (pinned_fail, ReadMaster, Reason::Pinned),
        (USUAL, ReadSlave, Reason::ReadMethod),
        (Situation { intent: ReadsDatabase, ..USUAL }, ReadSlave, Reason::ReadsDatabase),
        (headless, ReadSlave, Reason::ReadMethod),
        (unusable, ReadMaster, SlavesUnavailable),
        (Situation { intent: ReadsDatabase, ..unusable }, ReadMaster, SlavesUnavailable),
    ];
    for (situation, target, reason) in table {
        assert_eq!(choose(situation), (target, reason), "{situation:?}");
    }
}

#[test]
fn a_write_is_the_masters_whatever_else_holds() {
    for intent in [WriteMethod, ChangesDatabase] {
        for pinned in [Pinned::No, Pinned::ToMaster, Pinned::ToSlave] {
            for slaves in [Slaves::NotConfigured, Slaves::Usable, Slaves::Unusable] {
                for master in [Master::Usable, Master::Unusable] {
                    let situation = Situation { intent, pinned, slaves, master, ..USUAL };
                    assert_eq!(choose(situation).0, ReadWrite, "{situation:?}");
                }
            }
        }
    }
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
