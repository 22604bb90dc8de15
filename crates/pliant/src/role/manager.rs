//! The manager role: one task owns the machine, everything else feeds it or carries out what it
//! decides.
//!
//! Decides: nothing about volumes. It refuses a store of another cluster, and stops when the
//! store says that another manager has taken over.
//! Invariants: every queue is bounded; a fault of a link or a call ends that link or call alone;
//! a failed commit ends the process, because what the store holds is then unknown.

mod commits;
mod config;
mod links;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use control::{
    api::CallToken,
    http::{HttpRequest, HttpResponse},
    machine::{Action, Event, LinkId, Manager},
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};

use crate::{
    clock::{self, Clock},
    http,
    store::{MetaStore, SqliteStore, StoreError},
};
use commits::Commits;
use config::Config;
use links::{LinkInput, Links};

/// Inputs that wait for the machine; who brings more waits.
const INPUTS_MAX: usize = 1024;

/// What reaches the task that owns the machine.
#[derive(Debug)]
enum Input {
    Link(LinkId, LinkInput),
    Call { door: Door, request: HttpRequest, answer: oneshot::Sender<HttpResponse> },
}

/// Which address a call came in at.
#[derive(Debug, Clone, Copy)]
enum Door {
    Api,
    Metrics,
}

/// Runs a manager until it is told to stop or cannot go on.
pub fn run(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let store = SqliteStore::open(&config.store)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let control = bind("control links", config.listen).await?;
        let api = bind("the API", config.api_listen).await?;
        let metrics = match config.metrics_listen {
            Some(address) => Some(bind("metrics", address).await?),
            None => None,
        };
        let doors = Doors { control, api, metrics };
        serve(config, Box::new(store), doors, stop_requested()?).await
    })
}

async fn bind(what: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen for {what} on {address}"))
}

fn stop_requested() -> anyhow::Result<impl Future<Output = ()> + Send> {
    let catch = |kind| -> anyhow::Result<Signal> { signal(kind).context("cannot catch signals") };
    let (mut terminate, mut interrupt) =
        (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The sockets that others dial.
struct Doors {
    control: TcpListener,
    api: TcpListener,
    metrics: Option<TcpListener>,
}

/// Serves on the given sockets until `stop` comes (then `Ok`) or the store fails.
async fn serve(
    config: Config,
    mut store: Box<dyn MetaStore>,
    doors: Doors,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let Doors { control, api, metrics } = doors;
    let term = store.take_over()?;
    commits::check_cluster(store.as_mut(), term, &config.cluster)?;
    let records = commits::load(store.as_ref())?;
    tracing::info!(
        cluster = config.cluster,
        term = %term,
        records = records.len(),
        api = %api.local_addr()?,
        control = %control.local_addr()?,
        "manager starts"
    );

    let clock = Clock::start();
    let (inputs_in, inputs) = mpsc::channel(INPUTS_MAX);
    let seed = u64::try_from(clock::random()? >> 64).expect("the upper half");
    let mut first = Vec::new();
    let machine = Manager::new(
        config.manager_params(),
        records,
        seed,
        clock.now(),
        clock::wall(),
        &mut first,
    );
    let mut shell = Shell {
        machine,
        clock,
        links: Links::default(),
        calls: BTreeMap::new(),
        last_call: 0,
        commits: Commits::start(store, term)?,
    };
    let stores = first.iter().any(|action| matches!(action, Action::Commit { .. }));
    shell.carry_out(first);
    if stores {
        // The root account is there before anybody can ask as it.
        let commit = shell.commits.committed().await?;
        shell.handle(Event::Committed { commit });
    }

    let accepting = tokio::spawn(links::accept(control, inputs_in.clone()));
    let door = |listener, door| {
        let inputs = inputs_in.clone();
        tokio::spawn(http::serve(listener, move |request| ask(inputs.clone(), door, request)))
    };
    let serving = door(api, Door::Api);
    let scraped = metrics.map(|listener| door(listener, Door::Metrics));
    let ended = shell.turn(inputs, stop).await;
    accepting.abort();
    serving.abort();
    scraped.inspect(|task| task.abort());
    shell.commits.close();
    tracing::info!("manager stops");
    Ok(ended?)
}

/// Hands one call to the machine's task and waits for the answer.
async fn ask(
    inputs: mpsc::Sender<Input>,
    door: Door,
    request: HttpRequest,
) -> Option<HttpResponse> {
    let (answer, answered) = oneshot::channel();
    inputs.send(Input::Call { door, request, answer }).await.ok()?;
    answered.await.ok()
}

/// The machine and where its actions go.
struct Shell {
    machine: Manager,
    clock: Clock,
    links: Links,
    /// Calls that are not answered. Bounded by what `http` lets in.
    calls: BTreeMap<CallToken, oneshot::Sender<HttpResponse>>,
    last_call: u64,
    commits: Commits,
}

impl Shell {
    async fn turn(
        &mut self,
        mut inputs: mpsc::Receiver<Input>,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), StoreError> {
        tokio::pin!(stop);
        loop {
            let deadline = self.machine.deadline().map(|at| self.clock.std_instant(at));
            let event = tokio::select! {
                () = &mut stop => return Ok(()),
                committed = self.commits.committed() => {
                    Some(Event::Committed { commit: committed? })
                }
                input = inputs.recv() => {
                    self.event_of(input.expect("the tasks that send live as long as this one"))
                }
                () = until(deadline) => Some(Event::TimeReached),
            };
            if let Some(event) = event {
                self.handle(event);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let mut out = Vec::new();
        self.machine.handle(self.clock.now(), clock::wall(), event, &mut out);
        self.carry_out(out);
    }

    /// `None` when it is about a link that the machine has closed.
    fn event_of(&mut self, input: Input) -> Option<Event> {
        match input {
            Input::Link(link, input) => self.links.event_of(link, input),
            Input::Call { door, request, answer } => {
                self.last_call += 1;
                let call = CallToken(self.last_call);
                self.calls.insert(call, answer);
                Some(match door {
                    Door::Api => Event::HttpReceived { call, request },
                    Door::Metrics => Event::ScrapeReceived { call, request },
                })
            }
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { link, message } => self.links.send(link, &message),
                Action::CloseLink { link } => self.links.close(link),
                Action::Commit { commit, writes } => self.commits.begin(commit, &writes),
                Action::Report { text } => tracing::warn!("{text}"),
                Action::AnswerHttp { call, response } => {
                    let waiting = self.calls.remove(&call);
                    // A client that has hung up needs no answer.
                    drop(waiting.map(|answer| answer.send(response)));
                }
            }
        }
    }
}

async fn until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
