//! What a node manager is told by its file.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use model::{
    id::{AccountId, InstanceId, NodeId, Zone},
    limits::ATTACHMENTS_PER_INSTANCE_MAX,
};
use serde::Deserialize;

/// Instances of one node manager. With the attachments of each this bounds what it serves.
const INSTANCES_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    pub cluster: String,
    pub id: NodeId,
    pub zone: Zone,
    /// Where the manager listens for control links.
    pub manager: SocketAddr,
    /// Whose volumes may be attached here.
    pub account: AccountId,
    pub instances: Vec<InstanceId>,
    /// For the record of attachments and the mount of kernel devices. Made when missing.
    pub dir: PathBuf,
    #[serde(default)]
    pub nbd_socket: Option<PathBuf>,
    #[serde(default)]
    pub nbd_listen: Option<SocketAddr>,
    /// Kernel block devices on request. Needs root.
    #[serde(default)]
    pub kernel_devices: bool,
}

impl NodeConfig {
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not right", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        ensure!(!config.cluster.is_empty(), "cluster has no name");
        ensure!(
            config.nbd_socket.is_some() || config.nbd_listen.is_some(),
            "neither nbd_socket nor nbd_listen is given, so nothing could reach a volume"
        );
        ensure!(
            config.instances.len() <= INSTANCES_MAX,
            "{} instances exceed {INSTANCES_MAX} (each may attach {ATTACHMENTS_PER_INSTANCE_MAX} \
             volumes)",
            config.instances.len()
        );
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cluster = "demo"
        id = "node-a"
        zone = "local-1a"
        manager = "127.0.0.1:7000"
        account = "000000000001"
        instances = ["i-0123456789abcdef0"]
        dir = "/var/lib/pliant/node-a"
        nbd_socket = "/run/pliant/nbd.sock"
        nbd_listen = "127.0.0.1:10809"
    "#;

    #[test]
    fn a_complete_file_is_taken_and_devices_are_off_by_default() {
        let config = NodeConfig::parse(GOOD).expect("it is complete");
        assert_eq!(config.id.as_str(), "node-a");
        assert!(!config.kernel_devices);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let check = |text: &str, part: &str| {
            let error = format!("{:#}", NodeConfig::parse(text).expect_err(text));
            assert!(error.contains(part), "{error}");
        };
        check(&format!("{GOOD}\nkernel_device = true"), "kernel_device");
        check(&GOOD.replace("node-a\"", "Node A\""), "lower-case");
        check(&GOOD.replace("000000000001", "1"), "12 decimal digits");
        check(&GOOD.replace("127.0.0.1:7000", "manager"), "socket address");
        let no_nbd = GOOD.lines().filter(|l| !l.contains("nbd_")).collect::<Vec<_>>().join("\n");
        check(&no_nbd, "nothing could reach a volume");
    }
}
