//! Pliant: elastic block storage whose volumes change while programs use them.

mod cli;
mod drive;
mod front;
mod net;
mod role;
mod store;

fn main() -> anyhow::Result<()> {
    let _ = (role::manager::run, role::server::run, role::node::run);
    Ok(())
}
