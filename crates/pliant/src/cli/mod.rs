//! The command line.
//!
//! Decides: how a person asks and how answers look; exit code 0 done, 1 refused or failed, 2
//! usage.
//! Does not: know a rule of volumes. What is allowed, the service says.

mod account;
mod attachment;
pub mod client;
mod fleet;
mod table;
mod volume;
mod wait;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::{bench, demo, load, role, telemetry, up};
use client::{Client, Refusal};

/// Elastic block storage whose volumes change while programs use them
#[derive(Debug, Parser)]
#[command(name = "pliant", version, max_term_width = 100)]
#[command(after_help = "Examples:\n  \
    pliant up --dir /tmp/pliant\n  \
    . /tmp/pliant/env\n  \
    pliant volume create --zone local-1a --size 8 --wait\n  \
    pliant volume modify vol-0123456789abcdef0 --size 16 --type io2 --iops 4000 --wait")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    /// Run the manager: decides what exists and where, and serves the API
    Manager(RoleArgs),
    /// Run a BDS server (--config), or look at the servers and their drives
    #[command(after_help = "Examples:\n  \
        pliant server list\n  \
        pliant server show server-a-1 --json\n  \
        pliant server drain server-a-1 --wait\n  \
        pliant server --config /etc/pliant/server.toml")]
    Server(RoleOr<fleet::Command>),
    /// Run a node manager (--config), or list the node managers
    Node(RoleOr<ListCommand>),
    /// Create, look at, change and delete volumes
    Volume(Asking<volume::Command>),
    /// Attach volumes to instances, and detach them
    Attachment(Asking<attachment::Command>),
    /// List the instances that node managers registered
    Instance(Listing),
    /// List the availability zones
    Zone(Listing),
    /// Make and list accounts; for the root account
    Account(Asking<account::Command>),
    Load(load::command::Args),
    Demo(demo::Args),
    #[command(hide = true)]
    Bench(bench::Args),
}

#[derive(Debug, Args)]
struct RoleArgs {
    /// The role's configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// A role by its configuration, or a question about all of that role.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct RoleOr<C: Subcommand> {
    /// Run with this configuration file (TOML)
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<C>,
}

#[derive(Debug, Args)]
struct Listing {
    #[command(subcommand)]
    command: ListCommand,
}

#[derive(Debug, Clone, Subcommand)]
enum ListCommand {
    /// List them
    List(Reach),
}

/// A command that asks the service.
#[derive(Debug, Args)]
struct Asking<C: Subcommand> {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    command: C,
}

/// How to reach the service, and how to print what it says.
#[derive(Debug, Clone, Args)]
pub struct Reach {
    /// Directory of a running `pliant up`; without it AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION say where and as whom
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print the service's answer as JSON
    #[arg(long, global = true)]
    json: bool,
}

impl Reach {
    pub fn client(&self) -> anyhow::Result<Client> {
        match &self.dir {
            Some(dir) => Client::from_dir(dir),
            None => Client::from_env(),
        }
    }

    /// Prints the answer itself, or what `readable` makes of it.
    fn print(&self, answer: &Value, readable: impl FnOnce(&Value) -> String) -> anyhow::Result<()> {
        let text = if self.json { format!("{answer:#}") } else { readable(answer) };
        print_line(&text)
    }
}

/// A reader that has gone away (`| head`) is no failure.
fn print_line(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Runs one command line to its end.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Refusal>() {
            Some(refusal) if refusal.code == "DryRunOperation" => {
                eprintln!("the request would be accepted; nothing was changed (--dry-run)");
                ExitCode::SUCCESS
            }
            _ => {
                eprintln!("pliant: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => up::run(&args),
        Command::Manager(args) => {
            telemetry::start("info")?;
            role::manager::run(&args.config)
        }
        Command::Server(RoleOr { config: Some(config), .. }) => {
            telemetry::start("info")?;
            role::server::run(&config)
        }
        Command::Node(RoleOr { config: Some(config), .. }) => {
            telemetry::start("info")?;
            role::node::run(&config)
        }
        Command::Server(RoleOr { command, .. }) => {
            fleet::run(command.expect("required where --config is not given"))
        }
        Command::Node(RoleOr { command, .. }) => list(command, fleet::nodes),
        Command::Instance(listing) => list(Some(listing.command), fleet::instances),
        Command::Zone(listing) => list(Some(listing.command), fleet::zones),
        Command::Volume(asking) => volume::run(&asking.reach, asking.command),
        Command::Attachment(asking) => attachment::run(&asking.reach, asking.command),
        Command::Account(asking) => account::run(&asking.reach, asking.command),
        Command::Load(args) => load::command::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Demo(args) => demo::run(&args),
    }
}

fn list(
    command: Option<ListCommand>,
    list: impl FnOnce(&Reach) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let ListCommand::List(reach) = command.expect("required where --config is not given");
    list(&reach)
}

#[cfg(test)]
mod tests;
