//! Whether the service can be used: the API answers and every process has registered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;
use tokio::sync::oneshot;

const PAUSE: Duration = Duration::from_millis(50);
const CALL_LIMIT: Duration = Duration::from_secs(2);

/// Asks until it is so, or until dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    pub fn start(
        endpoint: &str,
        servers: usize,
        nodes: usize,
    ) -> std::io::Result<(Self, oneshot::Receiver<()>)> {
        let url = format!("{endpoint}/v1/health");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = oneshot::channel();
        let thread = std::thread::Builder::new().name("ready".to_owned()).spawn(move || {
            let config =
                ureq::Agent::config_builder().proxy(None).timeout_global(Some(CALL_LIMIT)).build();
            let agent = config.new_agent();
            while !stopped.load(Ordering::Relaxed) {
                if health(&agent, &url).is_some_and(|health| is_up(&health, servers, nodes)) {
                    // Nobody waits any more when the service is being stopped.
                    let _ = ready.send(());
                    return;
                }
                std::thread::park_timeout(PAUSE);
            }
        })?;
        Ok((Self { stop, thread }, is_ready))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
    }
}

fn health(agent: &ureq::Agent, url: &str) -> Option<Value> {
    let body = agent.get(url).call().ok()?.body_mut().read_to_vec().ok()?;
    serde_json::from_slice(&body).ok()
}

fn is_up(health: &Value, servers: usize, nodes: usize) -> bool {
    let count = |name: &str| health.get(name).and_then(Value::as_u64).unwrap_or(0);
    let reaches = |up: u64, wanted: usize| usize::try_from(up).is_ok_and(|up| up >= wanted);
    reaches(count("servers_up"), servers) && reaches(count("nodes_up"), nodes)
}
