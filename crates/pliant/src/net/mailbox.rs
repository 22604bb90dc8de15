//! What other threads tell the reactor.
//!
//! Invariant: the reactor is woken only when it sleeps, and never sleeps on a letter.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use mio::Waker;

use super::MAILBOX_MAX;

struct Queue<P> {
    letters: VecDeque<P>,
    asleep: bool,
    /// The reactor is gone; letters are dropped.
    closed: bool,
}

struct Shared<P> {
    queue: Mutex<Queue<P>>,
    room: Condvar,
    waker: Waker,
}

impl<P> Shared<P> {
    fn lock(&self) -> MutexGuard<'_, Queue<P>> {
        // Nothing panics while it holds the lock, so a poisoned queue is still a queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Posts to a reactor from any thread.
pub struct Poster<P> {
    shared: Arc<Shared<P>>,
}

impl<P> Clone for Poster<P> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<P> fmt::Debug for Poster<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poster").finish_non_exhaustive()
    }
}

impl<P> Poster<P> {
    /// Waits while the mailbox is full. Never call it on the reactor's own thread.
    pub fn post(&self, letter: P) {
        let mut queue = self.shared.lock();
        while queue.letters.len() >= MAILBOX_MAX && !queue.closed {
            queue = self.shared.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.closed {
            return;
        }
        queue.letters.push_back(letter);
        let wake = std::mem::take(&mut queue.asleep);
        drop(queue);
        if wake && let Err(error) = self.shared.waker.wake() {
            tracing::error!(%error, "cannot wake the reactor");
        }
    }
}

/// The reactor's end.
pub(super) struct Mailbox<P> {
    shared: Arc<Shared<P>>,
}

impl<P> Mailbox<P> {
    pub(super) fn new(registry: &mio::Registry, token: mio::Token) -> io::Result<Self> {
        let queue = Queue { letters: VecDeque::new(), asleep: false, closed: false };
        let waker = Waker::new(registry, token)?;
        let shared = Shared { queue: Mutex::new(queue), room: Condvar::new(), waker };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(super) fn poster(&self) -> Poster<P> {
        Poster { shared: Arc::clone(&self.shared) }
    }

    /// Whether the reactor may sleep; from now on a letter wakes it.
    pub(super) fn may_sleep(&self) -> bool {
        let mut queue = self.shared.lock();
        queue.asleep = queue.letters.is_empty();
        queue.asleep
    }

    /// Takes every letter.
    pub(super) fn take(&self, mut each: impl FnMut(P)) {
        let mut queue = self.shared.lock();
        queue.asleep = false;
        let full = queue.letters.len() >= MAILBOX_MAX;
        let letters = std::mem::take(&mut queue.letters);
        drop(queue);
        if full {
            self.shared.room.notify_all();
        }
        letters.into_iter().for_each(&mut each);
    }
}

impl<P> Drop for Mailbox<P> {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        queue.letters.clear();
        drop(queue);
        self.shared.room.notify_all();
    }
}
