use std::path::PathBuf;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let name = format!("pliant-up-{}-{test}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("the temporary directory is writable");
        Self(path)
    }

    fn prepare(&self, line: &str) -> anyhow::Result<Settings> {
        let words = ["up", "--dir", "unused"].into_iter().chain(line.split_whitespace());
        let args = Line::try_parse_from(words)?.args;
        Settings::prepare(&self.0, &args)
    }

    fn refused(&self, line: &str, says: &str) {
        let error = format!("{:#}", self.prepare(line).expect_err(line));
        assert!(error.contains(says), "'{error}' does not say '{says}'");
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_later_start_finds_what_the_first_one_chose() {
    let dir = Directory::new("again");
    let first = dir.prepare("--port 0 --zones a,b").expect("a first start");
    assert_eq!(first.servers.len(), 4);
    assert_eq!(first.nodes.len(), 2);
    assert_eq!(dir.prepare("--port 0").expect("the same again"), first);
    let grown = dir.prepare("--zones a,b,c --servers-per-zone 3").expect("it may grow");
    assert_eq!(grown.servers.len(), 9);
    assert_eq!(grown.servers["server-a-2"], first.servers["server-a-2"]);
    assert_eq!(grown.nodes["node-b"], first.nodes["node-b"]);
}

#[test]
fn ports_differ_and_lie_below_those_of_outgoing_connections() {
    let dir = Directory::new("ports");
    let settings = dir.prepare("--port 0 --servers-per-zone 4").expect("a first start");
    let servers = settings.servers.values().map(|s| s.port);
    let nodes = settings.nodes.values().map(|n| n.nbd_port);
    let all: Vec<_> =
        servers.chain(nodes).chain([settings.api_port, settings.control_port]).collect();
    let different: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(different.len(), all.len());
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux");
    let lowest: u16 =
        range.split_whitespace().next().expect("two numbers").parse().expect("a port");
    assert!(all.iter().all(|port| *port < lowest), "{all:?}");
}

#[test]
fn what_data_depends_on_cannot_change() {
    let dir = Directory::new("keep");
    let given = "--port 0 --zones a,b --account 123456789012 --access-key AK --secret-key SK";
    let first = dir.prepare(given).expect("a first start");
    assert_eq!((first.access_key.as_str(), first.secret_key.as_str()), ("AK", "SK"));
    dir.prepare(given).expect("the same command again");
    dir.refused("--region other-1", "was started with local-1");
    dir.refused("--account 210987654321", "was started with 123456789012");
    dir.refused("--secret-key other", "is not the one");
    dir.refused("--zones a", "must go on naming zone 'b'");
}

#[test]
fn arguments_out_of_bounds_are_refused_by_name() {
    let dir = Directory::new("bounds");
    dir.refused("--zones a,b,a", "'a' is given twice");
    dir.refused("--zones ab", "'ab' is not a lower-case letter");
    dir.refused("--servers-per-zone 0", "--servers-per-zone 0");
    dir.refused("--remirror-delay -1", "-1");
    dir.refused("--remirror-delay NaN", "NaN");
    dir.refused("--ssd-gib 0", "a drive of 0 GiB");
    dir.refused("--region Ümlaut", "lower-case");
    assert!(!dir.0.join("up.toml").exists(), "a refusal leaves nothing behind");
}

#[test]
fn a_port_that_is_in_use_is_named() {
    let dir = Directory::new("in-use");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    dir.refused(&format!("--port {port}"), &format!("port {port} of the API"));
}

#[test]
fn secrets_use_the_whole_alphabet_and_differ() {
    let drawn = letters(4_000, b"abc").expect("random bits");
    assert!(drawn.bytes().all(|b| b"abc".contains(&b)));
    for letter in ["a", "b", "c"] {
        assert!(drawn.matches(letter).count() > 1_000, "{letter} is rare");
    }
    assert_ne!(letters(40, b"abc").expect("random bits"), letters(40, b"abc").expect("bits"));
}

#[test]
fn the_settings_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Directory::new("mode");
    dir.prepare("--port 0").expect("a first start");
    let metadata = std::fs::metadata(dir.0.join("up.toml")).expect("written");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}
