//! The demo's own service: `pliant up` as a child process, and the means to reach and hurt it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::cli::client::Client;

/// Tells a directory that an earlier demo made, and that may be removed, from any other.
const MARKER: &str = ".pliant-demo";

pub struct Service {
    dir: PathBuf,
    region: String,
    api: Client,
    child: Mutex<Child>,
}

impl Service {
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        if dir.exists() {
            ensure!(dir.join(MARKER).exists(), "{} exists and no demo made it", dir.display());
            fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        fs::create_dir_all(dir)?;
        fs::write(dir.join(MARKER), "")?;
        let log = fs::File::create(dir.join("up.log"))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["up", "--zones", "a,b", "--servers-per-zone", "3", "--port", "0"])
            .args(["--no-restart", "--remirror-delay", "1", "--dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting pliant up")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        if !line.starts_with("ready http://") {
            drop(child.kill());
            bail!("the service did not start; see {}", dir.join("up.log").display());
        }
        let api = Client::from_dir(dir)?;
        let region = api.region().to_owned();
        Ok(Self { dir: dir.to_path_buf(), region, api, child: Mutex::new(child) })
    }

    pub fn api(&self) -> &Client {
        &self.api
    }

    pub fn zone(&self, letter: char) -> String {
        format!("{}{letter}", self.region)
    }

    pub fn volume(&self, volume: &str) -> anyhow::Result<Value> {
        self.api.get(&format!("/v1/volumes/{volume}"))
    }

    /// Signal 9, as the kernel's out-of-memory killer would send it.
    #[expect(unsafe_code, reason = "kill has no safe form in std")]
    pub fn kill(&self, name: &str) -> anyhow::Result<()> {
        let path = self.dir.join("run").join(format!("{name}.pid"));
        let pid =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let pid: libc::pid_t = pid.trim().parse().context("a pid")?;
        ensure!(pid > 1, "{} holds no pid of ours", path.display());
        // SAFETY: sends a signal to one process, by the pid that its supervisor wrote down.
        let result = unsafe { libc::kill(pid, libc::SIGKILL) };
        ensure!(result == 0, "kill {pid}: {}", std::io::Error::last_os_error());
        Ok(())
    }

    #[expect(unsafe_code, reason = "kill has no safe form in std")]
    pub fn stop(&self) -> anyhow::Result<()> {
        let mut child = self.child.lock().expect("nobody panics while holding it");
        let pid = libc::pid_t::try_from(child.id()).context("a pid")?;
        // SAFETY: the child has not been waited for, so the pid is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        child.wait().context("waiting for pliant up")?;
        Ok(())
    }

    pub fn remove(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))
    }
}
