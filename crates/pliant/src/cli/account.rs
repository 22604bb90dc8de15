//! `pliant account …`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    Reach,
    table::{Rows, elements, text},
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an account with one access key. The secret is shown once
    #[command(after_help = "Example:\n  pliant account create --name research")]
    Create {
        /// What people call it
        #[arg(long)]
        name: String,
    },
    /// List the accounts and their access keys
    List,
}

pub fn run(reach: &Reach, command: Command) -> anyhow::Result<()> {
    let client = reach.client()?;
    match command {
        Command::Create { name } => {
            let made = client.post("/v1/accounts", &json!({ "name": name }))?;
            reach.print(&made, |made| {
                format!(
                    "account {}\nexport AWS_ACCESS_KEY_ID='{}'\nexport AWS_SECRET_ACCESS_KEY='{}'",
                    text(made, "account"),
                    text(made, "access_key"),
                    text(made, "secret_key"),
                )
            })
        }
        Command::List => reach.print(&client.get("/v1/accounts")?, |answer| {
            let mut rows = Rows::new(["ACCOUNT", "NAME", "ROOT", "ACCESS KEYS"], "no account");
            for account in elements(answer, "accounts") {
                let keys = elements(account, "access_keys").iter().filter_map(Value::as_str);
                let keys: Vec<_> = keys.collect();
                rows.push([
                    text(account, "account"),
                    text(account, "name"),
                    text(account, "root"),
                    keys.join(" "),
                ]);
            }
            rows.print()
        }),
    }
}
