//! Explores a scope to its end, or to the first violation, breadth first: with one thread, a path to a
//! violation is as short as any.
//!
//! Decides: what of the checker's result counts. Does not: print, or measure time.

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use crate::{
    breaks::{Found, Masked},
    model::Proof,
    tell,
};

#[derive(Debug)]
pub struct Outcome {
    /// Different ones, and all that were generated.
    pub states: usize,
    pub generated: usize,
    /// The longest path that was taken.
    pub depth: usize,
    pub violation: Option<Violation>,
    pub reached: Vec<&'static str>,
    /// What the scope must be able to reach, and was not seen.
    pub missing: Vec<&'static str>,
}

#[derive(Debug)]
pub struct Violation {
    pub property: &'static str,
    /// One line for each step.
    pub path: Vec<String>,
}

pub fn explore(proof: Proof, threads: usize) -> Outcome {
    let checker = proof.checker().threads(threads);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut found = checker.discoveries();
    let (mut violation, mut reached, mut missing) = (None, Vec::new(), Vec::new());
    for property in checker.model().properties() {
        let path = found.remove(property.name);
        match (property.expectation, path) {
            (Expectation::Sometimes, Some(_)) => reached.push(property.name),
            (Expectation::Sometimes, None) => missing.push(property.name),
            (_, Some(path)) if violation.is_none() => {
                let path = tell::path(checker.model(), &path.into_vec());
                violation = Some(Violation { property: property.name, path });
            }
            _ => {}
        }
    }
    Outcome {
        states: checker.unique_state_count(),
        generated: checker.state_count(),
        depth: checker.max_depth(),
        violation,
        reached,
        missing,
    }
}

impl Found {
    pub fn explore(&self) -> Outcome {
        explore(Proof::broken(self.scope, &[self.mistake]), 1)
    }
}

impl Masked {
    pub fn explore(&self, threads: usize) -> Outcome {
        explore(Proof::broken(self.scope, &[self.mistake]), threads)
    }

    /// With the other rule broken as well.
    pub fn explore_both(&self) -> Option<Outcome> {
        self.with.map(|with| explore(Proof::broken(self.scope, &[self.mistake, with]), 1))
    }
}
