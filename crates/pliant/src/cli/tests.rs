use clap::{CommandFactory, Parser};

use super::*;

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn a_server_is_run_or_listed_but_not_both() {
    let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
    assert!(matches!(
        parse("pliant server --config x.toml").expect("runs").command,
        Command::Server(RoleOr { config: Some(_), command: None })
    ));
    let listed = parse("pliant server list --json --dir /d").expect("lists").command;
    let Command::Server(RoleOr { config: None, command: Some(fleet::Command::List(reach)) }) =
        listed
    else {
        panic!("not a list");
    };
    assert!(reach.json && reach.dir.is_some());
    assert!(parse("pliant server show server-a-1 --json").is_ok());
    assert!(parse("pliant server show").is_err());
    assert!(parse("pliant server").is_err());
    assert!(parse("pliant server --config x.toml list").is_err());
}

#[test]
fn a_modification_must_say_what_to_change() {
    let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
    let volume = "vol-0123456789abcdef0";
    assert!(parse(&format!("pliant volume modify {volume}")).is_err());
    assert!(parse(&format!("pliant volume modify {volume} --wait")).is_err());
    assert!(parse(&format!("pliant volume modify {volume} --size 4 --json --wait")).is_ok());
    assert!(parse("pliant volume modify vol-1 --size 4").is_err(), "not an id");
    assert!(parse(&format!("pliant volume modify {volume} --type fast")).is_err());
}
