//! A modification as it goes on: how far, how fast, how long still.

use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use model::id::VolumeId;
use serde_json::Value;

use crate::cli::{
    client::Client,
    table::{bytes, elements, number, text},
    wait,
};

/// Over which the rate is measured.
const WINDOW: Duration = Duration::from_secs(3);

/// Shows progress on standard error until the modification has ended; gives its last state.
/// Without a terminal, one line per step.
pub fn watch(client: &Client, volume: VolumeId, begun: &Value) -> anyhow::Result<Value> {
    let number = number(begun, "number");
    let bar = ProgressBar::new(100);
    let style = ProgressStyle::with_template("{msg}\n[{bar:50}] {pos:>3}%");
    bar.set_style(style.expect("the template is well formed"));
    let mut pace = Pace::default();
    let mut step = String::new();
    let path = format!("/v1/volumes/{volume}/modifications");
    let ended = wait::until(client, "completed", |client| {
        let answer = client.get(&path)?;
        let found = elements(&answer, "modifications").iter().find(|m| m["number"] == number);
        let Some(now) = found else { bail!("{volume} has no modification {number}") };
        let line = pace.line(now);
        bar.set_position(now["progress_percent"].as_u64().unwrap_or(0).min(100));
        bar.set_message(line.clone());
        if bar.is_hidden() && step != text(now, "step") {
            eprintln!("{line}");
            step = text(now, "step");
        }
        let running = matches!(now["state"].as_str(), Some("modifying" | "optimizing"));
        Ok((!running).then(|| now.clone()))
    });
    bar.finish_and_clear();
    let ended = ended?;
    if ended["state"] == "failed" {
        bail!("{volume}: modification {number} failed: {}", text(&ended, "status_message"));
    }
    Ok(ended)
}

/// Shows progress on standard error until the scrub has ended; gives its last state.
pub fn watch_scrub(client: &Client, path: &str) -> anyhow::Result<Value> {
    let bar = ProgressBar::new(100);
    let style = ProgressStyle::with_template("{msg}\n[{bar:50}] {pos:>3}%");
    bar.set_style(style.expect("the template is well formed"));
    let ended = wait::until(client, "scrubbed", |client| {
        let now = client.get(path)?;
        bar.set_position(now["percent"].as_u64().unwrap_or(0).min(100));
        bar.set_message(format!("{} verified", bytes(number(&now, "bytes"))));
        Ok((now["finished"] == true).then_some(now))
    });
    bar.finish_and_clear();
    ended
}

/// What was moved, a short while back.
#[derive(Default)]
struct Pace {
    marks: std::collections::VecDeque<(Instant, u64)>,
}

impl Pace {
    fn line(&mut self, modification: &Value) -> String {
        let moved = number(modification, "bytes_moved");
        let total = number(modification, "bytes_total");
        let now = Instant::now();
        self.marks.push_back((now, moved));
        while self.marks.len() > 2 && self.marks.front().is_some_and(|m| now - m.0 > WINDOW) {
            self.marks.pop_front();
        }
        let mut line = format!("{}, {}", text(modification, "state"), text(modification, "step"));
        if total > 0 {
            line += &format!(", {} of {}", bytes(moved), bytes(total));
        }
        if let Some(rate) = self.rate() {
            line += &format!(", {}/s", bytes(rate));
            let left = total.saturating_sub(moved);
            if left > 0 {
                line += &format!(", about {} left", duration(left.div_ceil(rate)));
            }
        }
        line
    }

    /// Bytes per second; none while nothing moves.
    fn rate(&self) -> Option<u64> {
        let (first, last) = (self.marks.front()?, self.marks.back()?);
        let millis = (last.0 - first.0).as_millis();
        let bytes = u128::from(last.1.saturating_sub(first.1)) * 1000;
        u64::try_from(bytes.checked_div(millis)?).ok().filter(|rate| *rate > 0)
    }
}

fn duration(secs: u64) -> String {
    match (secs / 3600, secs / 60 % 60, secs % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_read_in_the_units_that_matter() {
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(61), "1 min 1 s");
        assert_eq!(duration(7_260), "2 h 1 min");
    }

    #[test]
    fn the_rate_and_what_is_left_follow_from_what_moved() {
        let start = Instant::now().checked_sub(Duration::from_secs(2)).expect("not at boot");
        let mut pace = Pace { marks: [(start, 0)].into() };
        let line = pace.line(&json!({
            "state": "optimizing", "step": "fill",
            "bytes_moved": 200 << 20, "bytes_total": 1000 << 20,
        }));
        assert!(line.starts_with("optimizing, fill, 200 MiB of 1000 MiB, "), "{line}");
        assert!(line.ends_with("about 9 s left") || line.ends_with("about 8 s left"), "{line}");
    }

    #[test]
    fn nothing_is_said_of_a_rate_that_is_not_known() {
        let line = Pace::default().line(&json!({ "state": "modifying", "step": "place" }));
        assert_eq!(line, "modifying, place");
    }
}
