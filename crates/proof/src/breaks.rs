//! Mistakes that an implementation of the protocol could make, one at a time.
//!
//! Decides: nothing; whoever keeps a rule asks whether it is broken.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Break {
    /// The primary acknowledges what its own engine has, without its mirrors.
    AcknowledgedAlone,
    /// The primary does not wait for its own engine.
    AcknowledgedUnwritten,
    /// The primary goes on without a silent mirror before the manager has said so.
    ShrunkEarly,
    /// A mirror acknowledges what its engine has not made durable.
    AcknowledgedEarly,
    /// A promise does not outlive the process.
    PromiseForgotten,
    /// A mirror obeys a primary below its promise.
    PromiseIgnored,
    /// The manager fails over without a promise.
    FailoverUnpromised,
    /// The manager hands over without a promise.
    SwitchUnpromised,
    /// A failover keeps the other replicas in the set.
    SurvivorsKept,
    /// A failover may go to a learner.
    LearnerPromoted,
    /// A replica that comes back is in sync at once.
    LearnerInSyncAtOnce,
    /// A learner is called ready when one region is filled.
    ReadyUnfilled,
    /// Changes to filled regions are not sent to the learner.
    FilledNotForwarded,
    /// A region is filled while changes to it go on.
    FilledWithoutHold,
    /// A learner does not forget a pull when it adopts a configuration again.
    PullSurvives,
    /// Regions that are asked for again keep their token.
    TokensReused,
    /// A mirror obeys connections older than the one its primary adopted on.
    OldConnectionObeyed,
    /// A request that is repeated is done again.
    RepetitionForgotten,
    /// A request counts though it comes on an older connection.
    OldRequestCounts,
    /// A session is answered before what is older has left.
    OpenedEarly,
    /// Older generations are served.
    FencedServed,
    /// Reads do not wait for changes in flight.
    ReadsUncommitted,
    /// A deposed primary with changes in flight does not become stale.
    NeverStale,
    /// A primary that has restarted begins again under the configuration it finds.
    ServesAgain,
    /// The manager does not mind that a primary has restarted.
    RestartOverlooked,
    /// A primary says that it has handed over while changes are in flight.
    HandedOverInFlight,
    /// A primary gives two changes the same `ModSeq`.
    ModSeqReused,
    /// A primary adopts mirrors that it does not know to be in sync.
    AdoptsAnyMirror,
    /// A new primary begins before its engine has done what it was asked as mirror.
    LeadsAtOnce,
}
