//! What the machine found out about blocks, in the log: each, unless a drive that falls apart
//! would fill it.

use std::time::Duration;

use bds::api::{Finding, Incident};
use model::{id::DriveName, time::Instant};

/// Lines in one [`WINDOW`]; the rest are counted, and the count is logged with the next line.
const LINES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Incidents {
    window_began: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Incidents {
    pub(super) fn log(&mut self, now: Instant, incident: &Incident) {
        if !self.admits(now) {
            return;
        }
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            tracing::warn!(left_out, "findings about blocks were not logged one by one");
        }
        let Incident { volume, replica, drive, offset, finding } = incident;
        match finding {
            Finding::Bad => tracing::warn!(%volume, %replica, %drive, offset,
                "a block cannot be read or does not match its checksum"),
            Finding::Repaired => tracing::info!(%volume, %replica, %drive, offset,
                "a damaged block was written again from another replica"),
            Finding::Lost => tracing::error!(%volume, %replica, %drive, offset,
                "a damaged block has no good copy in any in-sync replica: reading it fails until \
                 it is written"),
            Finding::Differs { member } => tracing::error!(%volume, %replica, %drive, offset,
                %member, "a mirror holds other data than this primary with nothing in flight; it \
                 is to leave the in-sync set and be filled again"),
        }
    }

    fn admits(&mut self, now: Instant) -> bool {
        if self.window_began.is_none_or(|began| now.since(began) >= WINDOW) {
            (self.window_began, self.lines) = (Some(now), 0);
        }
        self.lines += 1;
        let admitted = self.lines <= LINES_MAX;
        self.left_out += u64::from(!admitted);
        admitted
    }
}

/// What opening a drive brought to light.
pub(super) fn log_opened(drive: &DriveName, formatted: bool, replicas: usize, stale: usize) {
    if formatted {
        tracing::info!(%drive, "the drive was blank and is formatted");
    }
    if stale > 0 {
        tracing::error!(%drive, replicas, stale,
            "recovery found damage: some of its replicas may miss acknowledged changes, and are \
             to be filled again from the others");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_that_falls_apart_does_not_fill_the_log() {
        let mut incidents = Incidents::default();
        let admitted = (0..1_000).filter(|_| incidents.admits(Instant::ZERO)).count();
        assert_eq!((admitted, incidents.left_out), (20, 980));
        assert!(incidents.admits(Instant::ZERO + WINDOW));
    }
}
