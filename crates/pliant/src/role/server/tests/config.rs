use std::path::Path;

use format::disk::JournalPlace;

use super::super::config::Config;

const GOOD: &str = r#"
cluster = "c"
id = "server-a-1"
zone = "local-1a"
listen = "127.0.0.1:7101"
manager = "127.0.0.1:7100"

[[drive]]
name = "ssd"
media = "ssd"
path = "drives/ssd"
size_gib = 4
journal_mib = 256
iops = 10000
throughput_mib = 500

[[drive]]
name = "hdd"
media = "hdd"
path = "/tmp/hdd"
size_gib = 8
journal_mib = 256
iops = 300
throughput_mib = 100
capacity_gib = 6
[drive.emulation]
seek_ms = 8.5
ops_per_sec = 120
mib_per_sec = 160
"#;

fn refusal(text: &str) -> String {
    let error = Config::parse(text, Path::new("/etc/pliant")).expect_err("it must be refused");
    format!("{error:#}")
}

#[test]
fn a_configuration_gives_drives_with_paths_and_emulation() {
    let config = Config::parse(GOOD, Path::new("/etc/pliant")).expect("it is good");
    assert_eq!(config.drives[0].path, Path::new("/etc/pliant/drives/ssd"));
    assert_eq!(config.drives[1].path, Path::new("/tmp/hdd"));
    let params = config.params(model::id::BootId::from_raw(1), config.listen);
    assert_eq!(params.drives[0].emulation, None);
    assert_eq!(params.drives[0].geometry.journal_bytes, 256 << 20);
    assert_eq!(params.drives[1].capacity.get(), 6 << 30);
    let emulation = params.drives[1].emulation.as_deref();
    assert_eq!(emulation, Some("hdd: 8.5 ms seek, 120 ops/s, 160 MiB/s"));
}

#[test]
fn a_journal_apart_is_found_beside_the_configuration_and_costs_the_drive_nothing() {
    let apart = GOOD.replace("capacity_gib = 6", "journal_path = \"ssd/journal\"");
    let config = Config::parse(&apart, Path::new("/etc/pliant")).expect("it is good");
    let path = config.drives[1].journal_path.as_deref();
    assert_eq!(path, Some(Path::new("/etc/pliant/ssd/journal")));
    let params = config.params(model::id::BootId::from_raw(1), config.listen);
    assert_eq!(params.drives[0].geometry.journal, JournalPlace::Inside);
    assert_eq!(params.drives[1].geometry.journal, JournalPlace::Apart);
    assert_eq!(params.drives[1].capacity.get(), (8 << 30) / 100 * 95);
    let twice = apart.replace("ssd/journal", "drives/ssd");
    assert!(
        refusal(&twice).contains("/etc/pliant/drives/ssd is given twice"),
        "{}",
        refusal(&twice)
    );
}

#[test]
fn an_unknown_key_is_named() {
    let misspelt = GOOD.replace("journal_mib = 256\niops = 300", "jurnal_mib = 256\niops = 300");
    assert!(refusal(&misspelt).contains("jurnal_mib"), "{}", refusal(&misspelt));
    let nested = GOOD.replace("seek_ms = 8.5", "seek_ms = 8.5\nspindles = 2");
    assert!(refusal(&nested).contains("spindles"), "{}", refusal(&nested));
}

#[test]
fn values_that_cannot_be_meant_are_refused_with_the_drive_and_key() {
    for (from, to, words) in [
        ("name = \"hdd\"", "name = \"ssd\"", "two drives are called 'ssd'"),
        ("size_gib = 8", "size_gib = 0", "drive 'hdd': 'size_gib' is 0"),
        ("journal_mib = 256", "journal_mib = 3", "drive 'ssd': 'journal_mib' must be 4 or more"),
        ("capacity_gib = 6", "capacity_gib = 9", "'capacity_gib' exceeds 'size_gib'"),
        ("seek_ms = 8.5", "seek_ms = nan", "'emulation.seek_ms' must be 0 to 1000"),
        ("ops_per_sec = 120", "ops_per_sec = 0", "'emulation.ops_per_sec' is 0"),
        ("cluster = \"c\"", "cluster = \"c\"\nscrub_mib = 0", "'scrub_mib' is 0"),
        ("cluster = \"c\"", "cluster = \"c\"\nscrub_days = 999", "'scrub_days' exceeds 366"),
        ("cluster = \"c\"", "cluster = \"\"", "'cluster' is empty"),
    ] {
        let text = refusal(&GOOD.replace(from, to));
        assert!(text.contains(words), "'{to}' gave: {text}");
    }
}
