//! The forgeries, each with the checker that has to notice.

mod direct;
mod ledger;
mod monitor;
mod reads;
mod registers;
mod tables;

use super::Forgery;
use super::forge::Forge;
use serde_json::json;

const fn wrong(what: &'static str, by: &'static str, act: fn(&mut Forge<'_>) -> Option<()>) -> Forgery {
    Forgery {
        what,
        by,
        verdict: "failed",
        act,
    }
}

const fn doubtful(what: &'static str, by: &'static str, act: fn(&mut Forge<'_>) -> Option<()>) -> Forgery {
    Forgery {
        what,
        by,
        verdict: "unknown",
        act,
    }
}

/// All of them.
pub const FORGERIES: &[Forgery] = &[
    wrong("A row is dropped from the table.", "lost", tables::drop_row),
    wrong(
        "A row has the id of a record that was sent elsewhere.",
        "lost",
        tables::replace_row,
    ),
    wrong("A record that can be decoded is set aside.", "lost", tables::set_aside),
    doubtful(
        "The log does not have what Kafka acknowledged.",
        "coverage",
        tables::forget_record,
    ),
    wrong("A row is there twice.", "duplicated", tables::double_row),
    wrong(
        "A row is there at another offset as well.",
        "duplicated",
        tables::copy_row,
    ),
    wrong("A record is a row and set aside.", "duplicated", tables::row_and_reject),
    wrong("A record is set aside twice.", "duplicated", tables::reject_twice),
    wrong("A row of a direct writer is there twice.", "duplicated", |f| {
        direct::double_written(f, "")
    }),
    wrong("A row that nobody sent is invented.", "phantom", tables::invent_row),
    wrong(
        "A row of an aborted transaction is there.",
        "phantom",
        tables::show_aborted,
    ),
    wrong(
        "A row stands behind the end of the log.",
        "phantom",
        tables::row_behind_end,
    ),
    wrong("A row that was refused is there.", "phantom", tables::show_refused),
    wrong(
        "An offset without a record is set aside.",
        "phantom",
        tables::reject_nothing,
    ),
    wrong(
        "A direct row that nobody wrote is invented.",
        "phantom",
        direct::invent_written,
    ),
    wrong("Two rows of one key are exchanged.", "reordered", tables::swap_rows),
    wrong(
        "A read shows fewer rows than were committed before.",
        "reads",
        reads::read_below_floor,
    ),
    wrong(
        "A fresh read shows less than its reader knew to be committed.",
        "reads",
        reads::read_below_known,
    ),
    wrong("A read shows a row twice.", "reads", reads::read_twice),
    wrong(
        "A read counts more distinct rows than rows.",
        "reads",
        reads::read_too_distinct,
    ),
    wrong(
        "A committed read goes back to a lower offset.",
        "reads",
        reads::read_lower_offset,
    ),
    wrong(
        "A read has an older version of the catalog than one that was answered before.",
        "reads",
        reads::read_older_version,
    ),
    wrong(
        "A read shows an offset that the log never had.",
        "reads",
        reads::read_behind_end,
    ),
    wrong("One record more is counted as stored.", "ledger", |f| {
        ledger::ledger(f, &[("stored", 1)])
    }),
    wrong(
        "The ledger says that it does not balance.",
        "ledger",
        ledger::ledger_says_no,
    ),
    wrong("A record that was stored is counted as filtered.", "ledger", |f| {
        ledger::ledger(f, &[("stored", -1), ("filtered", 1)])
    }),
    wrong("The ledger does not reach the end of the log.", "ledger", |f| {
        ledger::ledger(f, &[("passed", -1), ("absent", -1)])
    }),
    wrong("A record that was delivered is counted as lost.", "ledger", |f| {
        ledger::ledger(f, &[("lost", 1), ("delivered", -1), ("stored", -1)])
    }),
    wrong("A record that was stored is counted as absent.", "ledger", |f| {
        ledger::ledger(f, &[("stored", -1), ("delivered", -1), ("absent", 1)])
    }),
    wrong("A record that was stored is counted as rejected.", "ledger", |f| {
        ledger::ledger(f, &[("stored", -1), ("rejected", 1)])
    }),
    wrong(
        "The ledger of a partition is missing.",
        "ledger",
        ledger::ledger_missing,
    ),
    wrong(
        "What a program wrote is there, and the ledger does not count it.",
        "ledger",
        |f| ledger::of_direct(f, &[("passed", -1), ("delivered", -1), ("stored", -1)]),
    ),
    wrong(
        "The files do not agree with the ledger.",
        "ledger",
        ledger::files_disagree,
    ),
    wrong(
        "What a program lost is not counted as lost.",
        "acknowledged",
        ledger::lost_is_hidden,
    ),
    wrong(
        "Rows of programs are counted as lost that are there.",
        "acknowledged",
        |f| ledger::of_direct(f, &[("passed", 100_000), ("lost", 100_000)]),
    ),
    wrong("A row acknowledged by all is not there.", "acknowledged", |f| {
        direct::drop_written(f, "all")
    }),
    wrong(
        "A row acknowledged by its leader is gone without a reason.",
        "acknowledged",
        |f| direct::drop_written(f, "leader"),
    ),
    wrong(
        "A row that was sent without waiting is there twice.",
        "acknowledged",
        |f| direct::double_written(f, "none"),
    ),
    wrong(
        "A row of which nobody knows is there twice.",
        "acknowledged",
        direct::double_unknown,
    ),
    wrong(
        "A direct row that was refused is there.",
        "acknowledged",
        direct::show_refused,
    ),
    wrong(
        "A register is read as it was before another read.",
        "registers",
        registers::read_stale_register,
    ),
    wrong(
        "A register is read as it was before a set that had ended.",
        "registers",
        registers::read_overwritten,
    ),
    wrong(
        "A register holds what nobody wrote.",
        "registers",
        registers::read_foreign_value,
    ),
    wrong(
        "Two comparisons with the same value both succeed.",
        "registers",
        registers::two_winners,
    ),
    wrong(
        "A node has another state at the same version.",
        "digests",
        monitor::forge_digest,
    ),
    wrong(
        "A second node leads in the same epoch.",
        "leadership",
        monitor::second_leader,
    ),
    wrong(
        "A node says that it leads where another does.",
        "leadership",
        monitor::second_claim,
    ),
    doubtful("No node says what it leads.", "leadership", |f| {
        some(f.cut_all(|e| e.f == "claim"))
    }),
    wrong("An epoch goes back.", "leadership", monitor::epoch_back),
    wrong(
        "No read is answered for a long time after a fault.",
        "recovery",
        monitor::answer_late,
    ),
    wrong(
        "An acknowledged record is seen only long after a fault.",
        "recovery",
        monitor::seen_late,
    ),
    wrong(
        "The lag stays high after a fault.",
        "recovery",
        monitor::lag_after_fault,
    ),
    wrong(
        "The lag never comes down after all was healed.",
        "recovery",
        monitor::stay_behind,
    ),
    wrong("Everything is caught up too late.", "recovery", monitor::catch_up_late),
    doubtful("The fault that the run is about never happened.", "coverage", |f| {
        some(f.cut_all(|e| e.f.ends_with(" kill")))
    }),
    doubtful(
        "No operation of a kind that the run needs succeeded.",
        "coverage",
        monitor::never_ok,
    ),
    doubtful(
        "No read is answered after all was healed.",
        "coverage",
        monitor::silent_when_healed,
    ),
    doubtful("Nothing says that all was healed.", "coverage", |f| {
        some(f.cut_all(|e| e.f == "healed"))
    }),
    doubtful("Nothing says that all was caught up.", "coverage", |f| {
        some(f.cut_all(|e| e.f == "caught-up"))
    }),
    doubtful("A fault is not over when all is said to be healed.", "coverage", |f| {
        some(f.cut_all(|e| e.f == "end kill"))
    }),
    doubtful("The harness gives up.", "coverage", |f| {
        f.note("failed", json!({ "why": "no port was free" }));
        Some(())
    }),
    doubtful(
        "An operation ends that never began.",
        "coverage",
        monitor::end_without_begin,
    ),
    doubtful(
        "The table is told before everything was caught up.",
        "coverage",
        monitor::told_early,
    ),
    doubtful("An entry is cut out.", "coverage", monitor::lose_entry),
    doubtful("An entry has another form.", "coverage", monitor::misshapen),
    doubtful("Nobody looked at the table in the end.", "coverage", |f| {
        some(f.cut_all(|e| matches!(e.f.as_str(), "rows" | "rejects" | "ledger" | "log")))
    }),
];

fn some(count: usize) -> Option<()> {
    (count > 0).then_some(())
}
