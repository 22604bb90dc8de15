//! The command line.

pub mod client;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{role, telemetry, up};

#[derive(Debug, Parser)]
#[command(name = "pliant", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    /// Run the manager: decides what exists and where, and serves the API
    Manager(RoleArgs),
    /// Run a BDS server: stores replicas on its drives
    Server(RoleArgs),
    /// Run a node manager: exposes attached volumes as block devices
    Node(RoleArgs),
}

#[derive(Debug, clap::Args)]
struct RoleArgs {
    /// The role's configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs one command line to its end. Exit code 0: done; 1: refused or failed; 2: usage.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pliant: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => up::run(&args),
        Command::Manager(args) => {
            telemetry::start("info")?;
            role::manager::run(&args.config)
        }
        Command::Server(args) => {
            telemetry::start("info")?;
            role::server::run(&args.config)
        }
        Command::Node(args) => {
            telemetry::start("info")?;
            role::node::run(&args.config)
        }
    }
}
