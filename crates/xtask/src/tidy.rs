//! The house rules that the compiler cannot keep: what pure crates may depend on and touch, how
//! long files and lines may be, which words are not used, and no sleeping in tests.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const PURE: [&str; 6] = ["model", "format", "engine", "bds", "node", "control"];
/// What pure crates may depend on: data structures and arithmetic, nothing that does I/O.
const PURE_DEPENDENCIES: [&str; 15] = [
    "model",
    "format",
    "engine",
    "bytes",
    "crc32c",
    "serde",
    "serde_json",
    "thiserror",
    "proptest",
    "form_urlencoded",
    "hmac",
    "sha2",
    "subtle",
    "bds",
    "node",
];
/// Crates that may never import each other.
const BLIND: [(&str, [&str; 3]); 3] = [
    ("control", ["bds", "node", "engine"]),
    ("bds", ["control", "node", "pliant"]),
    ("node", ["control", "bds", "engine"]),
];
const IMPURE: [&str; 9] = [
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::thread",
    "std::env",
    "Instant::now",
    "SystemTime",
    "async fn",
    "HashMap",
];
const LINES_MAX: usize = 700;
const COLUMNS_MAX: usize = 110;
/// Words that the glossary replaces. Matched as whole words, in any case.
const WORDS: [(&str, &str); 7] = [
    ("master", "primary or manager"),
    ("slave", "mirror"),
    ("upstairs", "node manager"),
    ("downstairs", "BDS server"),
    ("osd", "BDS server"),
    ("rebuild", "resync"),
    ("evacuate", "drain"),
];
const ROOMS: [&str; 6] = ["common", "util", "utils", "helper", "misc", "core"];

struct Finding {
    path: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.what)
    }
}

pub fn run() -> ExitCode {
    let root = root();
    let mut findings = Vec::new();
    for name in PURE {
        check_dependencies(&root, name, &mut findings);
    }
    for path in tracked(&root) {
        if path.file_name().is_some_and(|name| name == "Cargo.toml") {
            check_features(&root, &path, &mut findings);
        }
        if path.extension().is_some_and(|e| e == "rs") {
            check_source(&root, &path, &mut findings);
        }
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    if findings.is_empty() {
        println!("tidy: no findings");
        ExitCode::SUCCESS
    } else {
        eprintln!("tidy: {} findings", findings.len());
        ExitCode::FAILURE
    }
}

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).expect("crates/xtask lies two levels down").to_path_buf()
}

/// Files that git knows or would add.
fn tracked(root: &Path) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .expect("git is installed");
    let text = String::from_utf8(output.stdout).expect("paths are UTF-8");
    text.lines().map(PathBuf::from).filter(|p| root.join(p).is_file()).collect()
}

fn check_dependencies(root: &Path, name: &str, findings: &mut Vec<Finding>) {
    let path = PathBuf::from(format!("crates/{name}/Cargo.toml"));
    let Ok(text) = fs::read_to_string(root.join(&path)) else { return };
    let mut in_dependencies = false;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            in_dependencies = line == "[dependencies]";
            continue;
        }
        let Some(dependency) = line.split(['.', ' ', '=']).next().filter(|d| !d.is_empty()) else {
            continue;
        };
        if !in_dependencies {
            continue;
        }
        let mut report =
            |what| findings.push(Finding { path: path.clone(), line: index + 1, what });
        if !PURE_DEPENDENCIES.contains(&dependency) {
            report(format!("pure crate {name} depends on {dependency}"));
        }
        for (machine, others) in BLIND {
            if machine == name
                && others.contains(&dependency)
                && !(name == "bds" && dependency == "engine")
            {
                report(format!("{name} may not know {dependency}"));
            }
        }
    }
}

/// Only what is never shipped may depend on an engine that can be broken on purpose.
fn check_features(root: &Path, path: &Path, findings: &mut Vec<Finding>) {
    let Ok(text) = fs::read_to_string(root.join(path)) else { return };
    let mut section = "";
    for (index, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            section = line;
        }
        let shipped = section == "[dependencies]" || section == "[workspace.dependencies]";
        if shipped && line.contains("sabotage") && path != Path::new("crates/xtask/Cargo.toml") {
            let what = "only tests and xtask may break the engine".to_owned();
            findings.push(Finding { path: path.to_path_buf(), line: index + 1, what });
        }
    }
}

fn check_source(root: &Path, path: &Path, findings: &mut Vec<Finding>) {
    let Ok(text) = fs::read_to_string(root.join(path)) else { return };
    let mut report =
        |line: usize, what: String| findings.push(Finding { path: path.to_path_buf(), line, what });
    let parts: Vec<_> = path.iter().filter_map(|p| p.to_str()).collect();
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    if ROOMS.contains(&stem) || parts.iter().any(|p| ROOMS.contains(p)) {
        report(1, "no room is called common, util, helper, misc or core".to_owned());
    }
    let is_test = parts.contains(&"tests") || stem == "tests" || stem.ends_with("_tests");
    let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = own.lines().count();
    if !is_test && lines > LINES_MAX {
        report(lines, format!("{lines} lines; split by the state it owns before {LINES_MAX}"));
    }
    let in_source = parts.first() == Some(&"crates") && parts.get(2) == Some(&"src");
    if in_source && !text.starts_with("//!") && !is_test {
        report(1, "a module opens with //!: what it decides, what not, its invariants".to_owned());
    }
    let pure = parts.get(1).is_some_and(|c| PURE.contains(c));
    if stem == "tidy" {
        return;
    }
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.chars().count() > COLUMNS_MAX && !line.contains('"') {
            report(number, format!("line longer than {COLUMNS_MAX} columns"));
        }
        let code = line.split("//").next().unwrap_or_default();
        if pure && in_source && !is_test {
            for impure in IMPURE.iter().filter(|i| code.contains(**i)) {
                report(number, format!("{impure} in a pure crate"));
            }
        }
        if is_test && (code.contains("thread::sleep") || code.contains("time::sleep")) {
            report(number, "a test sleeps; await the event with a deadline".to_owned());
        }
        for (word, instead) in WORDS {
            if has_word(line, word) {
                report(number, format!("'{word}' is not in the glossary; write {instead}"));
            }
        }
    }
}

fn has_word(line: &str, word: &str) -> bool {
    let lower = line.to_ascii_lowercase();
    lower.match_indices(word).any(|(at, _)| {
        let before = lower[..at].chars().next_back();
        let after = lower[at + word.len()..].chars().next();
        let inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        !inside(before) && !inside(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_whole_and_in_any_case() {
        assert!(has_word("the Master copy", "master"));
        assert!(!has_word("mastery of it", "master"));
        assert!(has_word("// an_osd_thing", "osd"));
    }

    #[test]
    fn the_workspace_is_tidy() {
        let mut findings = Vec::new();
        for name in PURE {
            check_dependencies(&root(), name, &mut findings);
        }
        assert!(findings.is_empty(), "{}", findings[0]);
    }
}
