use super::Intent::*;
use super::Reason::{MasterUnavailable, NoSlaves, Pinned, SlavesUnavailable, SwitchedOff};
use super::Target::*;
use super::*;

const USUAL: Situation = Situation {
    intent: ReadMethod,
    pinned: false,
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
    let pinned = Situation { pinned: true, ..USUAL };
    let alone = Situation { slaves: Slaves::NotConfigured, ..USUAL };
    let unusable = Situation { slaves: Slaves::Unusable, ..USUAL };
    let headless = Situation { master: Master::Unusable, ..USUAL };
    let pinned_headless = Situation { pinned: true, ..headless };
    let pinned_fail = Situation { pinned_without_master: PinnedWithoutMaster::Fail, ..pinned_headless };

    let table = [
        (write, MasterReadWrite, Reason::WriteMethod),
        (changes, MasterReadWrite, Reason::ChangesDatabase),
        (alone, MasterReadOnly, NoSlaves),
        (Situation { pinned: true, ..alone }, MasterReadOnly, NoSlaves),
        (Situation { read_from_slaves: ReadFromSlaves::Asked, ..alone }, MasterReadOnly, NoSlaves),
        (asked, MasterReadOnly, SwitchedOff),
        (Situation { pinned: true, ..asked }, MasterReadOnly, SwitchedOff),
        (Situation { intent: ReadsDatabase, ..asked }, Slave, Reason::ReadsDatabase),
        (Situation { intent: ReadsDatabase, pinned: true, ..asked }, MasterReadOnly, Pinned),
        (pinned, MasterReadOnly, Pinned),
        (Situation { intent: ReadsDatabase, ..pinned }, MasterReadOnly, Pinned),
        (Situation { slaves: Slaves::Unusable, ..pinned }, MasterReadOnly, Pinned),
        (pinned_headless, Slave, MasterUnavailable),
        (Situation { slaves: Slaves::Unusable, ..pinned_headless }, MasterReadOnly, Pinned),
        (pinned_fail, MasterReadOnly, Pinned),
        (USUAL, Slave, Reason::ReadMethod),
        (Situation { intent: ReadsDatabase, ..USUAL }, Slave, Reason::ReadsDatabase),
        (headless, Slave, Reason::ReadMethod),
        (unusable, MasterReadOnly, SlavesUnavailable),
        (Situation { intent: ReadsDatabase, ..unusable }, MasterReadOnly, SlavesUnavailable),
    ];
    for (situation, target, reason) in table {
        assert_eq!(choose(situation), (target, reason), "{situation:?}");
    }
}

#[test]
fn a_write_is_the_masters_whatever_else_holds() {
    for intent in [WriteMethod, ChangesDatabase] {
        for pinned in [false, true] {
            for slaves in [Slaves::NotConfigured, Slaves::Usable, Slaves::Unusable] {
                for master in [Master::Usable, Master::Unusable] {
                    let situation = Situation { intent, pinned, slaves, master, ..USUAL };
                    assert_eq!(choose(situation).0, MasterReadWrite, "{situation:?}");
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
