//! How programs reach their volumes: NBD on sockets, and a kernel block device through FUSE and
//! loop.
//!
//! Decides: how requests are taken in and bounded, and how replies leave.
//! Does not: order, retry or route requests (the node machine does), or know what a volume's
//! replicas are doing.

pub mod fuse;
pub mod nbd;

use node::api::GuestToken;

/// Names requests. One source for all fronts of a process, so that a token says whose it is.
#[derive(Debug, Default)]
pub struct Tokens {
    last: u64,
}

impl Tokens {
    pub fn next(&mut self) -> GuestToken {
        self.last += 1;
        GuestToken(self.last)
    }
}
