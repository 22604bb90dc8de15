//! The text is read back by a strict reader of the format.

use super::*;
use crate::router::fixture::*;

type Labels = BTreeMap<String, String>;

/// Samples by metric; panics where the text is not the format.
fn parse(text: &str) -> BTreeMap<String, Vec<(Labels, f64)>> {
    let legal = |name: &str| {
        let head = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        head && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let mut families: BTreeMap<String, Vec<(Labels, f64)>> = BTreeMap::new();
    let mut current = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help text");
            assert!(legal(name) && !help.is_empty(), "{line}");
            let kind = lines.next().and_then(|l| l.strip_prefix(&format!("# TYPE {name} ")));
            let kind = kind.unwrap_or_else(|| panic!("no type after {line}"));
            assert!(["gauge", "counter"].contains(&kind), "{kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(families.insert(name.to_owned(), Vec::new()).is_none(), "{name} comes twice");
            current = name.to_owned();
            continue;
        }
        let rest = line.strip_prefix(&current).unwrap_or_else(|| panic!("stray: {line}"));
        let (labels, value) = match rest.strip_prefix('{') {
            None => (Labels::new(), rest.strip_prefix(' ').expect("a space")),
            Some(rest) => read_labels(rest),
        };
        assert!(labels.keys().all(|l| legal(l)), "{line}");
        let samples = families.get_mut(&current).expect("declared");
        assert!(!samples.iter().any(|(l, _)| *l == labels), "twice: {line}");
        samples.push((labels, value.parse().expect("a number")));
    }
    assert!(text.ends_with('\n'));
    families
}

/// `name="value",…} 5` as labels and `5`.
fn read_labels(mut rest: &str) -> (Labels, &str) {
    let mut labels = Labels::new();
    loop {
        let (name, value) = rest.split_once("=\"").expect("a label");
        let mut text = String::new();
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().expect("the value ends") {
                (at, '"') => break at,
                (_, '\\') => match chars.next().expect("something is escaped").1 {
                    'n' => text.push('\n'),
                    c @ ('\\' | '"') => text.push(c),
                    other => panic!("\\{other} is no escape"),
                },
                (_, c) => text.push(c),
            }
        };
        assert!(labels.insert(name.to_owned(), text).is_none(), "{name} twice");
        rest = &value[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return (labels, rest.strip_prefix("} ").expect("the end of the labels")),
        }
    }
}

fn value(
    families: &BTreeMap<String, Vec<(Labels, f64)>>,
    name: &str,
    wanted: &[(&str, &str)],
) -> f64 {
    let fits = |labels: &Labels| wanted.iter().all(|(l, v)| labels.get(*l).is_some_and(|x| x == v));
    let found: Vec<_> = families[name].iter().filter(|(labels, _)| fits(labels)).collect();
    assert_eq!(found.len(), 1, "{name} {wanted:?}");
    found[0].1
}

#[test]
fn the_fleet_and_its_volumes_are_there_in_numbers() {
    let mut fixture = Fixture::new();
    let server = "server-b-1".parse().expect("a name");
    let failed = ("ssd".parse().expect("a name"), "EIO".to_owned());
    fixture.live.servers.get_mut(&server).expect("up").failed_drives.extend([failed]);
    let families = parse(&exposition(&fixture.view()));
    let a = [("server", "server-a-1"), ("drive", "ssd")];
    let check = |name: &str, labels: &[(&str, &str)], expected: f64| {
        assert!((value(&families, name, labels) - expected).abs() < 0.5, "{name} {labels:?}");
    };
    check("pliant_drive_size_bytes", &a, 1000.0 * 65_536.0);
    check("pliant_drive_used_bytes", &a, 250.0 * 65_536.0);
    check("pliant_drive_committed_bytes", &a, 108.0 * 1_073_741_824.0);
    check("pliant_drive_memory_max_bytes", &a, 64.0 * 1_048_576.0);
    for (kind, n) in [("found", 3.0), ("repaired", 2.0), ("lost", 1.0)] {
        check("pliant_drive_bad_blocks_total", &[a[0], ("kind", kind)], n);
    }
    check("pliant_drive_in_service", &a, 1.0);
    check("pliant_drive_in_service", &[("server", "server-b-1")], 0.0);
    check("pliant_server_up", &[("server", "server-c-1")], 0.0);
    check("pliant_volume_replicas_in_sync", &[("volume", GP3)], 1.0);
    check("pliant_volume_replicas_wanted", &[("volume", GP3)], 2.0);
    check("pliant_volume_serving", &[("volume", GP3)], 1.0);
    check("pliant_volumes", &[("state", "in-use")], 1.0);
    check("pliant_modifications", &[("state", "optimizing")], 1.0);
    // What is not known has no sample.
    let of_c =
        |name: &str| families[name].iter().filter(|(l, _)| l["server"] == "server-c-1").count();
    assert_eq!((of_c("pliant_drive_used_bytes"), of_c("pliant_drive_in_service")), (0, 0));
}

#[test]
fn labels_are_escaped() {
    let mut text = Text::default();
    text.family("a_b", Kind::Gauge, "Help.");
    text.sample("a_b", &[("x", "\\ \" \n é"), ("y", "")], 7);
    let families = parse(&text.0);
    assert!((value(&families, "a_b", &[("x", "\\ \" \n é"), ("y", "")]) - 7.0).abs() < 0.1);
}

#[test]
fn only_metrics_are_there() {
    let fixture = Fixture::new();
    let status = |method: &str, path: &str| {
        receive(&fixture.view(), &signed(ONE, "pliant", method, path, "")).status
    };
    let asked = [("GET", "/metrics"), ("POST", "/metrics"), ("GET", "/v1/volumes"), ("GET", "/")];
    assert_eq!(asked.map(|(method, path)| status(method, path)), [200, 405, 404, 404]);
}
