//! The small scopes of the model, explored to their ends, and every mistake that it can make.

use proof::{
    breaks::{Break, FOUND, MASKED},
    explore::explore,
    model::Proof,
    scope::{FINDINGS, SCOPES, Scope},
};

fn explored(name: &str) {
    let scope = SCOPES.iter().find(|s| s.name == name).expect("a scope of this name");
    let outcome = explore(Proof::new(*scope), 1);
    if let Some(violation) = outcome.violation {
        panic!("{name} violates {}:\n{}", violation.property, violation.path.join("\n"));
    }
    assert_eq!(outcome.missing, Vec::<&str>::new(), "{name} does not get there");
}

#[test]
fn deaths_and_broken_links_lose_nothing() {
    explored("links");
}

#[test]
fn a_superseded_guest_changes_nothing() {
    explored("guests");
}

#[test]
fn a_learner_is_admitted_only_when_it_is_equal() {
    explored("learner");
}

#[test]
fn a_prompt_hand_over_leaves_equals() {
    explored("hand-over");
}

#[test]
fn every_mistake_is_found() {
    for found in FOUND {
        let outcome = found.explore();
        assert!(outcome.violation.is_some(), "{:?} goes unnoticed", found.mistake);
    }
}

#[test]
fn masked_mistakes_show_only_with_another() {
    // What it hides behind takes long to explore; `cargo xtask model --breaks` does.
    for masked in MASKED.iter().filter(|m| m.mistake != Break::OpenedEarly) {
        let outcome = masked.explore(1);
        assert!(outcome.violation.is_none(), "{:?} is not masked", masked.mistake);
        if let Some(both) = masked.explore_both() {
            let with = masked.with.expect("there is another rule");
            assert!(both.violation.is_some(), "{:?} with {with:?}", masked.mistake);
        }
    }
}

#[test]
fn a_former_primary_that_is_not_doubted_brings_back_what_nobody_acknowledged() {
    for scope in FINDINGS {
        assert!(explore(Proof::new(*scope), 1).violation.is_some(), "{} goes well", scope.name);
    }
    let restart = Scope { doubted: true, ..FINDINGS[0] };
    assert!(explore(Proof::new(restart), 1).violation.is_none());
}

#[test]
fn forgetting_changes_no_result() {
    let small = Scope { crashes: 1, breaks: 1, failover: true, writes: 2, ..Scope::LEAST };
    for everything in [true, false] {
        let outcome = explore(Proof::new(Scope { everything, ..small }), 1);
        assert!(outcome.violation.is_none());
        assert_eq!(outcome.missing, Vec::<&str>::new());
    }
}
