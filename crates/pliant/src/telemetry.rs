//! Logging: one line per event on standard error, filtered by `PLIANT_LOG` (such as
//! `info,pliant::net=debug`), as JSON when `PLIANT_LOG_FORMAT=json`.
//!
//! A panic on any thread is our own bug: it is logged and the whole process stops, because what
//! remains of it cannot be trusted. Recovery is the ordinary start.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Starts logging for this process. `default` applies when `PLIANT_LOG` is not set.
pub fn start(default: &str) -> anyhow::Result<()> {
    let filter = match std::env::var("PLIANT_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .with_context(|| format!("PLIANT_LOG '{text}' is not a log filter"))?,
        Err(_) => EnvFilter::new(default),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if std::env::var("PLIANT_LOG_FORMAT").is_ok_and(|format| format == "json") {
        lines.json().init();
    } else {
        lines.init();
    }
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::force_capture();
        tracing::error!("stopping on a bug: {panic}\n{backtrace}");
        std::process::abort();
    }));
    Ok(())
}
