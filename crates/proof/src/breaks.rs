//! Mistakes that an implementation of the protocol could make, one at a time.
//!
//! Decides: which mistakes there are, and in which scope each shows itself or hides.
//! Does not: make them; whoever keeps a rule asks whether it is broken.
//! Invariant: every mistake is in exactly one of [`FOUND`] and [`MASKED`].

use crate::scope::{HandOvers, Scope};

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
    /// The manager hands over without a promise.
    SwitchUnpromised,
    /// A failover keeps the other replicas in the set.
    SurvivorsKept,
    /// A failover may go to a learner.
    LearnerPromoted,
    /// A replica that comes back is in sync at once.
    LearnerInSyncAtOnce,
    /// The manager believes what was said of a learner before it became one again.
    OldReadyBelieved,
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
    /// A mirror takes up its configuration again on a connection older than the one it obeys.
    OldAdoptObeyed,
    /// Older generations are served.
    FencedServed,
    /// Reads do not wait for changes in flight.
    ReadsUncommitted,
    /// A deposed primary with changes in flight does not become stale.
    NeverStale,
    /// A primary that has restarted serves under the configuration it finds.
    ServesAgain,
    /// The manager does not mind that a primary has restarted.
    RestartOverlooked,
    /// A primary says that it has handed over while changes are in flight.
    HandedOverInFlight,
    /// A primary gives two changes the same `ModSeq`.
    ModSeqReused,
    /// A new primary begins before its engine has done what it was asked as mirror.
    LeadsAtOnce,
    /// The manager fails over without a promise.
    FailoverUnpromised,
    /// A primary that has restarted begins its configuration again when it is told it again.
    BegunTwice,
    /// A primary adopts mirrors that it does not know to be in sync.
    AdoptsAnyMirror,
    /// A request that is repeated is done again.
    RepetitionForgotten,
    /// A request counts though it comes on an older connection.
    OldRequestCounts,
    /// A session is answered before what is older has left.
    OpenedEarly,
}

/// A mistake that nothing else makes up for, and a scope in which the checker finds it.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub mistake: Break,
    pub scope: Scope,
}

const WRITE: Scope = Scope::LEAST;
const WRITES: Scope = Scope { writes: 2, ..WRITE };
const CRASH: Scope = Scope { crashes: 1, ..WRITE };
const FAILOVER: Scope = Scope { failover: true, ..WRITE };
const CRASH_FAILOVER: Scope = Scope { crashes: 1, ..FAILOVER };
const LEARN: Scope = Scope { in_sync: 1, learn: true, ..WRITE };
const GUESTS: Scope = Scope { clients: 2, ..WRITE };
const HAND_OVER: Scope = Scope { hand_over: HandOvers::Prompt, ..CRASH };
const LATE: Scope = Scope { hand_over: HandOvers::Late, ..CRASH };
const SLOW: Scope = Scope { hand_over: HandOvers::Slow, ..WRITE };

pub const FOUND: &[Found] = &[
    Found { mistake: Break::AcknowledgedAlone, scope: WRITE },
    Found { mistake: Break::AcknowledgedUnwritten, scope: WRITE },
    Found { mistake: Break::ShrunkEarly, scope: WRITE },
    Found { mistake: Break::AcknowledgedEarly, scope: WRITE },
    Found { mistake: Break::PromiseForgotten, scope: CRASH_FAILOVER },
    Found { mistake: Break::PromiseIgnored, scope: FAILOVER },
    Found { mistake: Break::SwitchUnpromised, scope: Scope { epochs: 3, ..LATE } },
    Found { mistake: Break::SurvivorsKept, scope: CRASH_FAILOVER },
    Found { mistake: Break::LearnerPromoted, scope: Scope { failover: true, epochs: 3, ..LEARN } },
    Found { mistake: Break::LearnerInSyncAtOnce, scope: LEARN },
    Found { mistake: Break::OldReadyBelieved, scope: Scope { abandon: true, epochs: 5, ..LEARN } },
    Found { mistake: Break::ReadyUnfilled, scope: Scope { blocks: 2, writes: 2, ..LEARN } },
    Found { mistake: Break::FilledNotForwarded, scope: LEARN },
    Found { mistake: Break::FilledWithoutHold, scope: LEARN },
    Found { mistake: Break::PullSurvives, scope: Scope { breaks: 1, ..LEARN } },
    Found { mistake: Break::TokensReused, scope: Scope { clients: 2, epochs: 3, ..LEARN } },
    Found { mistake: Break::OldConnectionObeyed, scope: Scope { breaks: 1, ..WRITES } },
    Found { mistake: Break::OldAdoptObeyed, scope: Scope { breaks: 2, ..WRITES } },
    Found { mistake: Break::FencedServed, scope: GUESTS },
    Found { mistake: Break::ReadsUncommitted, scope: FAILOVER },
    Found { mistake: Break::NeverStale, scope: SLOW },
    Found { mistake: Break::ServesAgain, scope: Scope { crashes: 1, ..WRITES } },
    Found { mistake: Break::RestartOverlooked, scope: CRASH_FAILOVER },
    Found { mistake: Break::ModSeqReused, scope: WRITES },
    Found { mistake: Break::LeadsAtOnce, scope: FAILOVER },
];

/// A mistake that another rule makes up for: alone it has no counterexample in its scope, which is
/// explored to the end.
#[derive(Clone, Copy, Debug)]
pub struct Masked {
    pub mistake: Break,
    pub scope: Scope,
    /// The other rule, where it can be broken alone without a counterexample in the same scope:
    /// both together have one.
    pub with: Option<Break>,
    pub why: &'static str,
}

pub const MASKED: &[Masked] = &[
    Masked {
        mistake: Break::FailoverUnpromised,
        scope: Scope { crashes: 1, writes: 2, ..FAILOVER },
        with: None,
        why: "The successor is alone in its set, and leads with what it holds when it adopts the \
              configuration, from when on it refuses the old primary too. The promise shows that it \
              is there, not stale, and will lead; it is what a hand-over stands on.",
    },
    Masked {
        mistake: Break::BegunTwice,
        scope: Scope { crashes: 1, ..WRITES },
        with: Some(Break::RestartOverlooked),
        why: "The manager tells a configuration only to the run of the process it was made for.",
    },
    Masked {
        mistake: Break::AdoptsAnyMirror,
        scope: Scope { abandon: true, epochs: 4, ..LEARN },
        with: None,
        why: "The manager admits a learner only on the primary's word for its present stint, and \
              tells the result only to the run that gave the word.",
    },
    Masked {
        mistake: Break::RepetitionForgotten,
        scope: Scope { breaks: 1, ..WRITES },
        with: Some(Break::OldRequestCounts),
        why: "What comes again on the newest connection was not answered, so nothing that overlaps \
              it has followed. Doing it again costs time only.",
    },
    Masked {
        mistake: Break::OldRequestCounts,
        scope: Scope { breaks: 1, ..WRITES },
        with: Some(Break::RepetitionForgotten),
        why: "What an older connection holds was sent again and acknowledged, and is answered as a \
              repetition as long as the session remembers it.",
    },
    Masked {
        mistake: Break::HandedOverInFlight,
        scope: HAND_OVER,
        with: Some(Break::NeverStale),
        why: "A former primary that had changes in flight is stale when it learns what followed it. \
              It costs a fill, and a copy meanwhile.",
    },
    Masked {
        mistake: Break::OpenedEarly,
        scope: Scope { epochs: 3, failover: true, ..GUESTS },
        with: None,
        why: "Whatever the successor asks for waits for what it overlaps, so nothing older takes \
              effect after anything that was seen of the same block.",
    },
];
