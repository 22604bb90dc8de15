//! Waiting for the service to finish what it was asked.
//!
//! Invariant: an outage of the manager does not end the wait before [`OUTAGE_LIMIT`]; the work
//! goes on without it being watched.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Client, Refusal, Unreachable};

const PAUSE: Duration = Duration::from_millis(200);
const OUTAGE_LIMIT: Duration = Duration::from_secs(120);

/// Asks again and again until `look` finds what it waits for.
pub fn until(
    client: &Client,
    what: &str,
    mut look: impl FnMut(&Client) -> anyhow::Result<Option<Value>>,
) -> anyhow::Result<Value> {
    let mut away_since: Option<Instant> = None;
    loop {
        match look(client) {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => away_since = None,
            Err(error) if passes(&error) => {
                let since = *away_since.get_or_insert_with(Instant::now);
                if since.elapsed() > OUTAGE_LIMIT {
                    let context = format!("waiting for it to be {what}, which may still happen");
                    return Err(error.context(context));
                }
            }
            Err(error) => return Err(error),
        }
        pause();
    }
}

/// Whether asking again may help.
fn passes(error: &anyhow::Error) -> bool {
    error.is::<Unreachable>() || error.downcast_ref::<Refusal>().is_some_and(|r| r.status >= 500)
}

#[expect(clippy::disallowed_methods, reason = "the API can only be asked again, it does not tell")]
fn pause() {
    std::thread::sleep(PAUSE);
}
