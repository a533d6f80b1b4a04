//! Behaviours that are broken on purpose: a harness that does not notice them proves nothing.
//!
//! Each undoes one rule of how openraft is used, in the models of this crate. Neither the product nor openraft has a switch for being
//! wrong.

/// A behaviour that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Mutant {
    /// A vote is given and not written down.
    VoteIsNotPersisted,
    /// Appended entries are acknowledged before they are synced.
    AcknowledgesBeforeFsync,
    /// Entries overtake the vote on the way to the disk.
    EntriesOvertakeTheVote,
    /// A log that was truncated is whole again after a restart.
    TruncatedLogResurrects,
    /// The log is purged although neither the catalog nor a snapshot is synced.
    PurgesWhatIsNotSynced,
    /// A snapshot is installed, and not synced.
    InstallIsNotSynced,
    /// A start finds the log behind the catalog, and goes on with an old snapshot.
    LogIsBehindTheCatalog,
    /// A snapshot that was being built takes the place of a newer one that was installed meanwhile.
    OlderSnapshotTakesOver,
    /// A snapshot says that it is newer than it is.
    SnapshotIsOlderThanItSays,
    /// Entries are applied again after a restart.
    AppliesTwiceAfterRestart,
    /// What an entry changed is written, and its neighbour in the same batch is not.
    BatchIsTorn,
    /// A read is answered by whoever is asked, from what it has.
    ReadsWithoutIndex,
    /// A leader that was elected once answers reads without asking anybody.
    ReadsByTheLastTerm,
    /// Of a proposal whose fate is not known it is said that it was not made.
    UnknownIsTakenForNo,
    /// A proposal whose fate is not known is made again by the node itself.
    UnknownIsProposedAgain,
    /// A node whose disk was emptied comes back as the one that it was.
    EmptiedNodeComesBack,
    /// A node takes office again after a restart, without an election.
    LeaderIsRestored,
    /// A leader that hears nobody, and was removed meanwhile, takes its own word for it that it leads.
    LeaderBelievesItself,
}
