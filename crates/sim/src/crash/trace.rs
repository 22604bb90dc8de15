//! What happened, for a reader: kept only when somebody wants to read it.

use std::{cell::RefCell, rc::Rc};

/// Clones write into the same trace.
#[derive(Debug, Clone, Default)]
pub struct Trace(Option<Rc<RefCell<Vec<String>>>>);

impl Trace {
    pub fn new(kept: bool) -> Self {
        Self(kept.then(Rc::default))
    }

    pub fn note(&self, text: impl FnOnce() -> String) {
        if let Some(lines) = &self.0 {
            lines.borrow_mut().push(text());
        }
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.as_ref().map_or_else(Vec::new, |lines| lines.borrow().clone())
    }
}
