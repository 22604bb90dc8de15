//! Free ports on the loopback address.
//!
//! They are taken below the range from which the kernel gives outgoing connections theirs, so
//! that a process that died finds its port free when it is started again.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::clock::random;

const LOWEST: u16 = 10_000;
/// The kernel's default start of the outgoing range.
const HIGHEST_DEFAULT: u16 = 32_768;
const RELEASE_LIMIT: Duration = Duration::from_secs(2);
const RELEASE_PAUSE: Duration = Duration::from_millis(50);

pub struct Ports {
    next: u16,
    /// Exclusive.
    highest: u16,
    taken: BTreeSet<u16>,
}

impl Ports {
    pub fn new() -> anyhow::Result<Self> {
        let highest = outgoing_start().unwrap_or(HIGHEST_DEFAULT).max(LOWEST + 1_000);
        let spread = u128::from(highest - LOWEST);
        // Services that start at the same time should not try the same ports.
        let offset = random().context("cannot read random bits")? % spread;
        let next = LOWEST + u16::try_from(offset).expect("below a port");
        Ok(Self { next, highest, taken: BTreeSet::new() })
    }

    pub fn avoid(&mut self, ports: impl IntoIterator<Item = u16>) {
        self.taken.extend(ports);
    }

    pub fn free(&mut self) -> anyhow::Result<u16> {
        for _ in LOWEST..self.highest {
            let port = self.next;
            self.next = if port + 1 < self.highest { port + 1 } else { LOWEST };
            if is_free(port) && self.taken.insert(port) {
                return Ok(port);
            }
        }
        bail!("no port from {LOWEST} to {} is free on 127.0.0.1", self.highest - 1)
    }

    /// A kept port must still be free: peers know it. Waits a little, because the processes of
    /// a supervisor that was killed may still be on their way out.
    pub fn check(&self, whose: &str, port: u16) -> anyhow::Result<()> {
        let began = Instant::now();
        while began.elapsed() < RELEASE_LIMIT {
            if is_free(port) {
                return Ok(());
            }
            pause();
        }
        bail!("port {port} of {whose} is in use on 127.0.0.1; stop what uses it, or choose another")
    }
}

#[expect(clippy::disallowed_methods, reason = "the kernel does not tell when a port gets free")]
fn pause() {
    std::thread::sleep(RELEASE_PAUSE);
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn outgoing_start() -> Option<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    range.split_whitespace().next()?.parse().ok()
}
