//! Pliant: elastic block storage whose volumes change while programs use them.
//!
//! One binary, every role. This crate is the real world around the machines: sockets, drives,
//! the metadata store, the clock. It decides nothing about a volume, replica or attachment.

mod bench;
mod cli;
mod clock;
mod demo;
mod drive;
mod front;
mod http;
mod load;
mod net;
mod role;
mod store;
mod telemetry;
mod up;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
