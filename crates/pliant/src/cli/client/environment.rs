//! Where the service is and as whom to call it: from the environment, or from the `env` file of
//! a directory that `pliant up` runs in.

use std::path::Path;

use anyhow::{Context, anyhow};

use super::sign::Signer;

const ENDPOINT: &str = "AWS_ENDPOINT_URL";
const ACCESS_KEY: &str = "AWS_ACCESS_KEY_ID";
const SECRET_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const REGION: &str = "AWS_DEFAULT_REGION";

pub(super) struct Settings {
    pub endpoint: String,
    pub signer: Signer,
}

impl Settings {
    pub(super) fn of_env() -> anyhow::Result<Self> {
        Self::read(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
            .context("source the `env` file that `pliant up` wrote, or give --dir DIR")
    }

    pub(super) fn of_dir(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("env");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}; is `pliant up` running?", path.display()))?;
        Self::read(|name| exported(&text, name)).with_context(|| format!("in {}", path.display()))
    }

    fn read(value: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let required = |name: &str| value(name).ok_or_else(|| anyhow!("{name} is not set"));
        Ok(Self {
            endpoint: required(ENDPOINT)?,
            signer: Signer {
                access_key: required(ACCESS_KEY)?,
                secret_key: required(SECRET_KEY)?,
                region: required(REGION)?,
            },
        })
    }
}

/// The value of `export NAME='value'`, as `up` writes it: single quotes, and `'\''` for one.
fn exported(text: &str, name: &str) -> Option<String> {
    let quoted = text
        .lines()
        .find_map(|line| line.strip_prefix("export ")?.strip_prefix(name)?.strip_prefix('='))?;
    let inner = quoted.strip_prefix('\'')?.strip_suffix('\'')?;
    Some(inner.replace(r"'\''", "'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_read_as_a_shell_would() {
        let text = "# comment\nexport AB='x'\nexport A='it'\\''s'\nexport C=\n";
        assert_eq!(exported(text, "A").as_deref(), Some("it's"));
        assert_eq!(exported(text, "AB").as_deref(), Some("x"));
        assert_eq!(exported(text, "C"), None);
        assert_eq!(exported(text, "D"), None);
    }
}
