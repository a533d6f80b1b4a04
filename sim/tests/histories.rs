//! Simulated histories as part of the unit tests: a few, since `scripts/test` runs thousands in an optimised build.

use tidemill_sim::mutant::Mutant;
use tidemill_sim::{ControlPlane, Simulation};

#[test]
fn a_seed_is_a_history() {
    for seed in 1..4 {
        let first = ControlPlane::run(seed, None).unwrap();
        let told = ControlPlane::tell(seed, None).0.unwrap();
        assert_eq!(first, ControlPlane::run(seed, None).unwrap(), "seed {seed}");
        assert_eq!(first, told, "telling what happens changes nothing");
        assert_ne!(first.digest, ControlPlane::run(seed + 100, None).unwrap().digest);
        assert!(first.commits > 0 && first.queries > 0 && first.rows > 0, "{first:?}");
    }
}

#[test]
fn behaviours_that_are_broken_on_purpose_are_noticed() {
    // Those that show quickly; `sim --mutants` breaks all of them.
    let quick = [
        Mutant::NoEpochCheck,
        Mutant::NoHolderCheck,
        Mutant::SkippedIsNotLost,
        Mutant::ApplyReadsTheClock,
        Mutant::AcknowledgesBeforeFsync,
        Mutant::UnknownIsTakenForDone,
        Mutant::OffsetsGoAhead,
        Mutant::PinsAreNotCut,
        Mutant::AcknowledgesBeforeLogSync,
        Mutant::MemtableIsDroppedEarly,
        Mutant::LostNodeKeepsItsId,
    ];
    for mutant in quick {
        let caught = (1..30).any(|seed| ControlPlane::run(seed, Some(mutant)).is_err());
        assert!(caught, "nobody notices {mutant:?}");
    }
}
