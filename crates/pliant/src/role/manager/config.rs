//! A manager's configuration file.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use control::{
    api::Place,
    machine::{ManagerParams, RootAccount, Timing},
};
use model::id::{AccountId, Zone};
use serde::Deserialize;

const ZONES_MAX: usize = 26;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Servers and node managers of another cluster are refused.
    pub cluster: String,
    pub region: String,
    pub zones: Vec<Zone>,
    /// Where servers and node managers dial.
    pub listen: SocketAddr,
    pub api_listen: SocketAddr,
    /// Where Prometheus scrapes `/metrics`, unauthenticated: it names the volumes of all accounts,
    /// so give an address that only operators reach. Without it metrics are not served.
    pub metrics_listen: Option<SocketAddr>,
    /// How customers reach the API; by default `http://` and `api_listen`.
    pub api_endpoint: Option<String>,
    /// The metadata store's file. A relative path starts at the configuration file's directory.
    pub store: PathBuf,
    /// The root account and its first access key.
    pub account: AccountId,
    pub access_key: String,
    pub secret_key: String,
    /// How long a server may be away before its replicas are made anew elsewhere.
    pub remirror_delay_ms: u64,
}

impl Config {
    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        let parsed = Self::parse(&text, path.parent().unwrap_or(Path::new("")));
        parsed.with_context(|| format!("configuration {}", path.display()))
    }

    pub(super) fn parse(text: &str, directory: &Path) -> anyhow::Result<Self> {
        let mut config: Self = toml::from_str(text)?;
        config.store = directory.join(&config.store);
        if config.cluster.is_empty() {
            bail!("cluster is empty; give the cluster a name");
        }
        if config.zones.is_empty() || config.zones.len() > ZONES_MAX {
            bail!("{} zones; give 1 to {ZONES_MAX}", config.zones.len());
        }
        for (i, zone) in config.zones.iter().enumerate() {
            if config.zones[..i].contains(zone) {
                bail!("zone {zone} is listed twice");
            }
        }
        if config.access_key.is_empty() || config.secret_key.is_empty() {
            bail!("access_key and secret_key must not be empty");
        }
        Ok(config)
    }

    pub(super) fn manager_params(&self) -> ManagerParams {
        let endpoint = self.api_endpoint.clone();
        ManagerParams {
            cluster: self.cluster.clone(),
            place: Place {
                region: self.region.clone(),
                zones: self.zones.clone(),
                endpoint: endpoint.unwrap_or_else(|| format!("http://{}", self.api_listen)),
            },
            root: RootAccount {
                account: self.account,
                access_key: self.access_key.clone(),
                secret: self.secret_key.clone(),
            },
            remirror_delay: Duration::from_millis(self.remirror_delay_ms),
            timing: Timing::default(),
        }
    }
}
