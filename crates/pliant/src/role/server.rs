//! The server role.

use std::path::Path;

pub fn run(config: &Path) -> anyhow::Result<()> {
    anyhow::bail!("not built yet: {}", config.display())
}
