//! Draws what programs saw: latency and operations per second over time, events marked.

use std::fmt::Write;

use crate::load::stats::{Sample, summarize};

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const LATENCY_TOP: f64 = 110.0;
const LATENCY_HEIGHT: f64 = 260.0;
const RATE_TOP: f64 = 430.0;
const RATE_HEIGHT: f64 = 150.0;
const HEIGHT: f64 = 630.0;
const BUCKET_US: u64 = 250_000;

/// A moment worth a mark, in microseconds since the load's start.
#[derive(Debug, Clone)]
pub struct Mark {
    pub at_us: u64,
    pub label: String,
}

struct Bucket {
    at_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    per_sec: f64,
}

/// The picture as SVG text.
pub fn draw(title: &str, samples: &[Sample], marks: &[Mark]) -> String {
    let buckets = buckets(samples);
    let end_s = buckets.last().map_or(1.0, |b| b.at_s + 0.25).max(1.0);
    let x = |seconds: f64| LEFT + seconds / end_s * (WIDTH - LEFT - RIGHT);
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' \
         font-family='system-ui, sans-serif' font-size='12'>\
         <rect width='{WIDTH}' height='{HEIGHT}' fill='#fff'/>\
         <text x='{LEFT}' y='28' font-size='18' font-weight='600'>{}</text>",
        escape(title)
    );
    latency_panel(&mut svg, &buckets, &x);
    rate_panel(&mut svg, &buckets, &x);
    seconds_axis(&mut svg, end_s, &x);
    draw_marks(&mut svg, marks, &x);
    svg.push_str("</svg>\n");
    svg
}

#[expect(clippy::cast_precision_loss, reason = "a picture has fewer than 2^52 of anything")]
fn buckets(samples: &[Sample]) -> Vec<Bucket> {
    let mut sorted = samples.to_vec();
    sorted.sort_by_key(|s| s.at_us);
    let last = sorted.last().map_or(0, |s| s.at_us / BUCKET_US);
    let mut rest = sorted.as_slice();
    (0..=last)
        .map(|index| {
            let end = rest.partition_point(|s| s.at_us / BUCKET_US <= index);
            let (own, later) = rest.split_at(end);
            rest = later;
            let summary = summarize(own.iter().copied());
            let ms = |us: u64| us as f64 / 1e3;
            Bucket {
                at_s: (index * BUCKET_US) as f64 / 1e6,
                p50_ms: ms(summary.p50_us),
                p99_ms: ms(summary.p99_us),
                max_ms: ms(summary.max_us),
                per_sec: summary.count as f64 * 1e6 / BUCKET_US as f64,
            }
        })
        .collect()
}

/// Logarithmic from 0.1 ms to 10 s.
fn latency_y(ms: f64) -> f64 {
    let share = (ms.clamp(0.1, 10_000.0).log10() + 1.0) / 5.0;
    LATENCY_TOP + LATENCY_HEIGHT * (1.0 - share)
}

fn latency_panel(svg: &mut String, buckets: &[Bucket], x: &dyn Fn(f64) -> f64) {
    let end = WIDTH - RIGHT;
    for (ms, label) in [
        (0.1, "0.1 ms"),
        (1.0, "1 ms"),
        (10.0, "10 ms"),
        (100.0, "100 ms"),
        (1e3, "1 s"),
        (1e4, "10 s"),
    ] {
        let y = latency_y(ms);
        let _ = write!(
            svg,
            "<line x1='{LEFT}' x2='{end}' y1='{y:.1}' y2='{y:.1}' stroke='#e5e7eb'/>\
             <text x='{:.1}' y='{:.1}' text-anchor='end' fill='#6b7280'>{label}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    let curves = [("max", "#f59e0b"), ("p99", "#dc2626"), ("p50", "#2563eb")];
    for (index, (name, colour)) in (0u8..).zip(curves) {
        let value = |b: &Bucket| [b.max_ms, b.p99_ms, b.p50_ms][usize::from(index)];
        let mut path = String::new();
        let mut pen_down = false;
        for bucket in buckets {
            let answered = bucket.per_sec > 0.0;
            if answered {
                let command = if pen_down { 'L' } else { 'M' };
                let _ =
                    write!(path, "{command}{:.1} {:.1}", x(bucket.at_s), latency_y(value(bucket)));
            }
            pen_down = answered;
        }
        let legend = LEFT + 8.0 + f64::from(index) * 60.0;
        let _ = write!(
            svg,
            "<path d='{path}' fill='none' stroke='{colour}' stroke-width='1.4'/>\
             <text x='{legend:.1}' y='{:.1}' fill='{colour}' font-weight='600'>{name}</text>",
            LATENCY_TOP + LATENCY_HEIGHT - 8.0
        );
    }
    let _ = write!(
        svg,
        "<text x='{LEFT}' y='{:.1}' font-weight='600'>Latency</text>",
        LATENCY_TOP - 8.0
    );
}

fn rate_panel(svg: &mut String, buckets: &[Bucket], x: &dyn Fn(f64) -> f64) {
    let most = buckets.iter().map(|b| b.per_sec).fold(1.0, f64::max);
    let bottom = RATE_TOP + RATE_HEIGHT;
    let end = WIDTH - RIGHT;
    let y = |per_sec: f64| bottom - per_sec / most * RATE_HEIGHT;
    for share in [0.0, 0.5, 1.0] {
        let level = y(most * share);
        let _ = write!(
            svg,
            "<line x1='{LEFT}' x2='{end}' y1='{level:.1}' y2='{level:.1}' stroke='#e5e7eb'/>\
             <text x='{:.1}' y='{:.1}' text-anchor='end' fill='#6b7280'>{:.0}</text>",
            LEFT - 6.0,
            level + 4.0,
            most * share
        );
    }
    let mut path = format!("M{LEFT} {bottom:.1}");
    for bucket in buckets {
        let _ = write!(path, "L{:.1} {:.1}", x(bucket.at_s), y(bucket.per_sec));
    }
    if let Some(last) = buckets.last() {
        let _ = write!(path, "L{:.1} {bottom:.1}Z", x(last.at_s));
    }
    let _ = write!(
        svg,
        "<path d='{path}' fill='#bbf7d0' stroke='#16a34a' stroke-width='1'/>\
         <text x='{LEFT}' y='{:.1}' font-weight='600'>Operations per second</text>",
        RATE_TOP - 8.0
    );
}

fn seconds_axis(svg: &mut String, end_s: f64, x: &dyn Fn(f64) -> f64) {
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0]
        .into_iter()
        .find(|step| end_s / step <= 16.0)
        .unwrap_or(120.0);
    let mut at = 0.0;
    while at <= end_s {
        let _ = write!(
            svg,
            "<text x='{:.1}' y='{:.1}' text-anchor='middle' fill='#6b7280'>{at:.0} s</text>",
            x(at),
            RATE_TOP + RATE_HEIGHT + 20.0
        );
        at += step;
    }
}

/// Labels take turns on four lines, so that marks close in time stay readable.
fn draw_marks(svg: &mut String, marks: &[Mark], x: &dyn Fn(f64) -> f64) {
    let bottom = RATE_TOP + RATE_HEIGHT;
    for (index, mark) in marks.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "seconds of a demo")]
        let at = x(mark.at_us as f64 / 1e6);
        let line = 46.0 + 14.0 * f64::from(u8::try_from(index % 4).expect("below four"));
        let (anchor, shift) = if at > WIDTH * 0.75 { ("end", -4.0) } else { ("start", 4.0) };
        let _ = write!(
            svg,
            "<line x1='{at:.1}' x2='{at:.1}' y1='{:.1}' y2='{bottom:.1}' stroke='#7c3aed' \
             stroke-dasharray='3 3'/><text x='{:.1}' y='{line:.1}' text-anchor='{anchor}' \
             fill='#7c3aed'>{}</text>",
            line - 8.0,
            at + shift,
            escape(&mark.label)
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_holds_curves_marks_and_escaped_text() {
        let samples: Vec<_> =
            (0..1_000).map(|n| Sample { at_us: n * 10_000, latency_us: 500 + n }).collect();
        let marks = [Mark { at_us: 5_000_000, label: "a < b".to_owned() }];
        let svg = draw("demo & more", &samples, &marks);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("a &lt; b") && svg.contains("demo &amp; more"));
        assert_eq!(svg.matches("<path").count(), 4);
    }
}
