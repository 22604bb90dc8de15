//! What must hold in every state, by the numbers of docs/replication.md, and what must be reached.
//!
//! Decides: what a violation is. Does not: keep anything of the past (`history` does).

use stateright::Property;

use crate::{
    history::Wrong,
    model::{Proof, Turn},
    scope::{HandOvers, Scope},
    state::{Content, Note, Set, State},
};

pub fn all() -> Vec<Property<Proof>> {
    vec![
        Property::always("(1) one configuration per epoch, epochs rise by one", one_per_epoch),
        Property::always(
            "(2, 16) sets intersect, the primary was in sync",
            |_: &Proof, s: &State| s.history.wrong != Some(Wrong::NotInSync),
        ),
        Property::always("(3) a promise is never taken back", |_: &Proof, s: &State| {
            s.history.wrong != Some(Wrong::PromiseBroken)
        }),
        Property::always("(6) every member holds what was acknowledged", members_hold),
        Property::always("(8) a ModSeq names one content", one_content_per_mod_seq),
        Property::always("(9, 11, 12) guests see a register", |_: &Proof, s: &State| {
            s.history.wrong != Some(Wrong::NotARegister)
        }),
        Property::always(
            "(10) nothing of a superseded guest takes effect",
            |_: &Proof, s: &State| s.history.wrong != Some(Wrong::TookEffectLate),
        ),
        Property::always("(15, 17) members are equal where nothing is in flight", members_equal),
        Property::always("(16) only a member of the set leads", leader_is_member),
        Property::always("(19) comparing finds no difference", |_: &Proof, s: &State| {
            s.history.wrong != Some(Wrong::Differs)
        }),
    ]
}

fn one_per_epoch(_: &Proof, state: &State) -> bool {
    let (stored, before) = (state.manager.stored, state.manager.before);
    let known = state.servers.iter().map(|s| s.adopted).chain([stored, before]);
    let known: Vec<_> = known.collect();
    let unique = known.iter().all(|a| known.iter().all(|b| a.epoch != b.epoch || a == b));
    unique && known.iter().all(|c| c.epoch <= stored.epoch)
}

/// Whoever of the stored set is left alone, a read of it gives what a register could: each
/// acknowledged write, or one that came later.
fn members_hold(proof: &Proof, state: &State) -> bool {
    let turn = Turn { model: proof, state: state.clone() };
    let counts = |member: &u8| !state.server(*member).stale && !turn.would_not_promise(*member);
    state.manager.stored.in_sync().iter().filter(counts).all(|member| {
        (0..proof.scope.blocks).all(|block| {
            let content = state.server(member).blocks[usize::from(block)];
            state.history.may_hold(block, content.value)
        })
    })
}

fn one_content_per_mod_seq(_: &Proof, state: &State) -> bool {
    let held = state.servers.iter().flat_map(|server| {
        let durable = server.blocks.iter().copied().enumerate();
        let asked = server.engine.iter().map(|job| (usize::from(job.block), job.content));
        durable.chain(asked)
    });
    let held: Vec<(usize, Content)> = held.filter(|(_, c)| c.mod_seq.epoch > 0).collect();
    held.iter().all(|a| held.iter().all(|b| a.1.mod_seq != b.1.mod_seq || a == b))
}

/// Those that follow the primary of the stored configuration, while it acts under it.
fn members_equal(proof: &Proof, state: &State) -> bool {
    let stored = state.manager.stored;
    let server = state.server(stored.primary);
    let Some(primary) = server.primary().filter(|p| !p.is_deposed()) else { return true };
    if server.adopted.epoch != stored.epoch {
        return true;
    }
    let counted = stored.learner.filter(|&l| Turn::counts(primary, l));
    let mut members = stored.mirrors.iter().chain(counted).map(|m| state.server(m));
    members.all(|member| {
        member.adopted.epoch != stored.epoch
            || (0..proof.scope.blocks).all(|block| {
                let at = usize::from(block);
                let flies = primary.flights.iter().any(|f| f.block == block);
                flies || member.blocks[at] == server.blocks[at]
            })
    })
}

fn leader_is_member(_: &Proof, state: &State) -> bool {
    let leads = (0_u8..).zip(&state.servers).filter(|(_, s)| s.primary().is_some());
    leads.into_iter().all(|(number, server)| server.adopted.primary == number)
}

/// What the scope must be able to reach, or it proves nothing.
pub fn reached(scope: &Scope) -> Vec<Property<Proof>> {
    let mut reached: Vec<Property<Proof>> = Vec::new();
    macro_rules! sometimes {
        ($name:literal, $condition:expr) => {
            reached.push(Property::sometimes($name, $condition))
        };
    }
    sometimes!("a write is acknowledged", |_: &Proof, s: &State| !s
        .history
        .acknowledged
        .is_empty());
    if scope.crashes > 0 {
        sometimes!("a crash loses what was not durable", |_: &Proof, s: &State| s
            .notes
            .has(Note::CrashLost));
    }
    if scope.breaks > 0 {
        sometimes!("what an older connection held is ignored", |_: &Proof, s: &State| {
            s.notes.has(Note::LateIgnored)
        });
        sometimes!("a repetition is answered, not done again", |_: &Proof, s: &State| {
            s.notes.has(Note::RepetitionAnswered)
        });
    }
    if scope.failover && scope.writes > 1 {
        sometimes!("writes are acknowledged before and after a failover", after_failover);
    }
    if scope.failover {
        sometimes!("a change is refused below a promise", |_: &Proof, s: &State| {
            s.notes.has(Note::RefusedBelowPromise)
        });
        sometimes!(
            "what was refused is sent again under the newer epoch",
            |_: &Proof, s: &State| { s.notes.has(Note::SentAgainAfterRefusal) }
        );
    }
    if scope.drop {
        sometimes!("a change is complete because a mirror was dropped", |_: &Proof, s: &State| {
            s.notes.has(Note::CompletedByDrop)
        });
    }
    if scope.learn {
        sometimes!("a filled region is written to during the fill", |_: &Proof, s: &State| {
            s.notes.has(Note::ForwardedToLearner)
        });
        sometimes!(
            "a learner is admitted that was written to while it was filled",
            |_: &Proof, s: &State| {
                let written = |c: &Content| c.mod_seq.epoch + 1 == s.manager.stored.epoch;
                s.notes.has(Note::LearnerAdmitted)
                    && s.server(s.manager.stored.primary).blocks.iter().any(written)
            }
        );
    }
    if scope.hand_over != HandOvers::None {
        sometimes!(
            "a hand-over is completed, and writes acknowledged after it",
            |_: &Proof, s: &State| {
                let stored = s.manager.stored;
                let led = s.server(stored.primary);
                stored.primary != 0
                    && stored.in_sync().contains(0)
                    && led.blocks.iter().any(|c| {
                        c.mod_seq.epoch == stored.epoch
                            && s.history.acknowledged.contains(c.value - 1)
                    })
            }
        );
    }
    if matches!(scope.hand_over, HandOvers::Slow | HandOvers::Late) {
        sometimes!("an old primary becomes stale", |_: &Proof, s: &State| {
            s.notes.has(Note::BecameStale)
        });
    }
    if scope.clients > 1 {
        sometimes!("a fenced guest is refused", |_: &Proof, s: &State| s.notes.has(Note::Fenced));
        sometimes!("a session waits for what is older", |_: &Proof, s: &State| s
            .notes
            .has(Note::BarrierWaited));
        sometimes!("both guests' writes are acknowledged", |_: &Proof, s: &State| {
            s.history.superseded
                && s.history.acknowledged == Set::first(s.history.begun)
                && s.history.begun > 1
        });
    }
    reached
}

fn after_failover(_: &Proof, state: &State) -> bool {
    let stored = state.manager.stored;
    let done: Vec<u8> = state
        .server(stored.primary)
        .blocks
        .iter()
        .filter(|c| c.value > 0 && state.history.acknowledged.contains(c.value - 1))
        .map(|c| c.mod_seq.epoch)
        .collect();
    stored.primary != 0 && state.history.acknowledged.bits().count_ones() > 1 && !done.is_empty()
}
