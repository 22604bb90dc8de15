//! Breaks of the group protocol that can be switched on while machines run, so that the simulator,
//! which looks for such mistakes, can be shown to find them.
//!
//! Invariant: without the feature `sabotage`, which no product has, nothing is ever broken.

/// One rule of `docs/replication.md` that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// A primary acknowledges what not every member has (6).
    AcknowledgedAlone,
    /// A primary goes on without a silent member before the manager has said so (6).
    ShrunkAlone,
    /// A mirror says that it has a change before it is durable (6).
    MirrorAcknowledgesEarly,
    /// A promise is answered, and not kept over a restart (3).
    PromiseForgotten,
    /// A promise is kept over a restart, and not obeyed (3, 4).
    PromiseIgnored,
    /// The present primary is replaced without anybody's promise (4).
    FailoverWithoutPromise,
    /// A learner may follow a primary (16).
    LearnerPromoted,
    /// A learner is admitted when it begins (15).
    LearnerAdmitted,
    /// A learner is called ready before it is filled (15).
    LearnerReadyEarly,
    /// A learner whose content differs is called ready (15, 19).
    DifferenceIgnored,
    /// Changes go on while a region is filled (17).
    FilledWithoutHold,
    /// Changes of filled regions are not sent to the learner (17).
    FilledNotForwarded,
    /// What was sent on a link that broke is not sent again.
    NotSentAgain,
    /// A mirror obeys a primary on an older connection (8).
    OldConnectionObeyed,
    /// A request that was carried out is carried out again (9).
    RepetitionForgotten,
    /// What waits on an older connection of a guest counts (9).
    OldRequestCounts,
    /// A session is open before what is older has left (10).
    SessionOpenedEarly,
    /// A guest that has lost the volume is served (10).
    FencedServed,
    /// A primary that was replaced with changes in flight becomes a mirror as it is.
    StaleForgotten,
    /// A hand-over is carried through whenever it is answered.
    HandOverWithoutEnd,
    /// A primary that has restarted is taken for the one it was.
    RestartUnnoticed,
    /// A primary acknowledges what its own engine has not made durable (6).
    OwnNotWaited,
    /// A primary that has restarted goes on under the configuration that it had (8).
    BegunTwice,
    /// A configuration is acted on, and not kept over a restart (3).
    AdoptionForgotten,
    /// After a failover the other survivors count at once.
    SurvivorsKept,
    /// A primary says that it has stopped while changes are in flight.
    HandedOverInFlight,
    /// A replica whose content does not count promises to lead (16).
    StalePromises,
    /// A former primary promises to lead again with changes in flight that no other member took.
    PromisedInDoubt,
    /// A node manager sends requests that overlap at the same time.
    OverlapSent,
    /// A node manager does not send again what a link lost.
    RequestLost,
}

impl Sabotage {
    pub const ALL: [Self; 30] = [
        Self::AcknowledgedAlone,
        Self::ShrunkAlone,
        Self::MirrorAcknowledgesEarly,
        Self::PromiseForgotten,
        Self::PromiseIgnored,
        Self::FailoverWithoutPromise,
        Self::LearnerPromoted,
        Self::LearnerAdmitted,
        Self::LearnerReadyEarly,
        Self::DifferenceIgnored,
        Self::FilledWithoutHold,
        Self::FilledNotForwarded,
        Self::NotSentAgain,
        Self::OldConnectionObeyed,
        Self::RepetitionForgotten,
        Self::OldRequestCounts,
        Self::SessionOpenedEarly,
        Self::FencedServed,
        Self::StaleForgotten,
        Self::HandOverWithoutEnd,
        Self::RestartUnnoticed,
        Self::OwnNotWaited,
        Self::BegunTwice,
        Self::AdoptionForgotten,
        Self::SurvivorsKept,
        Self::HandedOverInFlight,
        Self::StalePromises,
        Self::PromisedInDoubt,
        Self::OverlapSent,
        Self::RequestLost,
    ];
}

#[cfg(feature = "sabotage")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
}

/// Breaks every machine of this thread, or none any more.
#[cfg(feature = "sabotage")]
pub fn activate(sabotage: Option<Sabotage>) {
    ACTIVE.set(sabotage);
}

#[cfg(feature = "sabotage")]
pub fn is_on(sabotage: Sabotage) -> bool {
    ACTIVE.get() == Some(sabotage)
}

#[cfg(not(feature = "sabotage"))]
pub fn is_on(_: Sabotage) -> bool {
    false
}
