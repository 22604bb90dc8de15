//! Runs the processes of a service: starts, watches, starts again, stops.
//!
//! Invariants: children die with this process; a process that dies soon after its start again and
//! again is started ever more slowly; on stop, who depends on others goes first, and nobody may
//! take longer than [`STOP_LIMIT`].

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{sleep_until, timeout},
};

use super::{
    files::{self, Process, Role},
    ready::Watch,
};

/// From the first start to readiness. Journals are filled with zeros at the first start.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// A process that lived this long is started again at once when it dies.
const PROVEN_AFTER: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Deaths before the service was ever ready that make it give up.
const DEATHS_MAX: u32 = 5;
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// In case the kernel merged two children's deaths into one signal.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
const LOG_TAIL_BYTES: u64 = 2_000;

/// What to run.
pub struct Service {
    pub dir: PathBuf,
    pub processes: Vec<Process>,
    pub restart: bool,
    pub endpoint: String,
    pub servers: usize,
    pub nodes: usize,
}

/// Runs until told to stop (then `Ok`), or until the service cannot start.
pub fn run(service: &Service) -> anyhow::Result<()> {
    // One thread: children get the death of the thread that started them as their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut supervisor = Supervisor::new(service)?;
        let ended = supervisor.watch().await;
        supervisor.stop().await;
        ended
    })
}

/// One process and its history.
struct Kept<'a> {
    process: &'a Process,
    child: Option<Child>,
    started: Instant,
    /// Deaths in a row, each soon after the start.
    early_deaths: u32,
    /// When to start it again.
    due: Option<Instant>,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    child: Signal,
}

impl Signals {
    fn catch() -> anyhow::Result<Self> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            child: catch(SignalKind::child())?,
        })
    }

    async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.terminate.recv() => Received::Stop,
            _ = self.interrupt.recv() => Received::Stop,
            _ = self.child.recv() => Received::Child,
        }
    }
}

enum Received {
    Stop,
    /// A child has ended, perhaps several.
    Child,
}

struct Supervisor<'a> {
    service: &'a Service,
    kept: Vec<Kept<'a>>,
    signals: Signals,
    ready: bool,
}

enum Woken {
    Stop,
    Ready,
    ReadyLate,
    Look,
}

impl<'a> Supervisor<'a> {
    fn new(service: &'a Service) -> anyhow::Result<Self> {
        let kept = service.processes.iter().map(|process| Kept {
            process,
            child: None,
            started: Instant::now(),
            early_deaths: 0,
            due: Some(Instant::now()),
        });
        Ok(Self { service, kept: kept.collect(), signals: Signals::catch()?, ready: false })
    }

    async fn watch(&mut self) -> anyhow::Result<()> {
        let Service { endpoint, servers, nodes, .. } = self.service;
        let (watch, mut is_ready) =
            Watch::start(endpoint, *servers, *nodes).context("cannot start a thread")?;
        let mut watch = Some(watch);
        let late = tokio::time::Instant::now() + READY_LIMIT;
        loop {
            self.start_due()?;
            let next = self.kept.iter().filter_map(|kept| kept.due).min();
            let next = next.unwrap_or_else(|| Instant::now() + LOOK_PAUSE);
            let ready = self.ready;
            let woken = tokio::select! {
                received = self.signals.next() => match received {
                    Received::Stop => Woken::Stop,
                    Received::Child => Woken::Look,
                },
                _ = &mut is_ready, if !ready => Woken::Ready,
                () = sleep_until(late), if !ready => Woken::ReadyLate,
                () = sleep_until(next.into()) => Woken::Look,
            };
            match woken {
                Woken::Stop => return Ok(()),
                Woken::Ready => {
                    self.ready = true;
                    drop(watch.take());
                    println!("ready {endpoint}");
                }
                Woken::ReadyLate => bail!(
                    "the service was not ready within {READY_LIMIT:?}; see {}",
                    self.service.dir.join("log").display()
                ),
                Woken::Look => {}
            }
            self.look()?;
        }
    }

    fn start_due(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        for kept in &mut self.kept {
            if kept.due.is_some_and(|due| due <= now) {
                kept.due = None;
                kept.child = Some(spawn(self.service, kept.process)?);
                kept.started = now;
            }
        }
        Ok(())
    }

    /// Finds out who has died, and when to start them again.
    fn look(&mut self) -> anyhow::Result<()> {
        for kept in &mut self.kept {
            let Some(child) = &mut kept.child else { continue };
            let name = &kept.process.name;
            let waited = child.try_wait().with_context(|| format!("waiting for {name}"))?;
            let Some(status) = waited else { continue };
            kept.child = None;
            let proven = kept.started.elapsed() >= PROVEN_AFTER;
            kept.early_deaths = if proven { 0 } else { kept.early_deaths + 1 };
            let gives_up = !self.service.restart || kept.early_deaths >= DEATHS_MAX;
            if !self.ready && gives_up {
                bail!("{name} {}; its log ends:\n{}", describe(status), tail(self.service, name));
            }
            let pid_file = pid_file(self.service, name);
            if self.service.restart {
                let backoff = backoff(kept.early_deaths);
                kept.due = Some(Instant::now() + backoff);
                eprintln!("{name} {}; starting it again in {backoff:?}", describe(status));
            } else {
                eprintln!("{name} {}; not starting it again", describe(status));
                // Absent already when a test cleans up; nobody depends on it.
                drop(fs::remove_file(pid_file));
            }
        }
        Ok(())
    }

    async fn stop(&mut self) {
        for role in [Role::Node, Role::Server, Role::Manager] {
            self.signal(role, libc::SIGTERM);
            let ended = timeout(STOP_LIMIT, self.ended(role)).await;
            if ended.is_err() {
                eprintln!("a {} did not stop within {STOP_LIMIT:?}", role.subcommand());
            }
            self.signal(role, libc::SIGKILL);
            self.reap(role);
        }
    }

    fn of_role(&mut self, role: Role) -> impl Iterator<Item = &mut Child> {
        let kept = self.kept.iter_mut().filter(move |kept| kept.process.role == role);
        kept.filter_map(|kept| kept.child.as_mut())
    }

    /// Ends when every process of that role has, or when told to stop again.
    async fn ended(&mut self, role: Role) {
        // An error means that there is nothing to wait for.
        while self.of_role(role).any(|child| child.try_wait().is_ok_and(|ended| ended.is_none())) {
            // Silence is no reason to stop waiting, a second request to stop is.
            if let Ok(Received::Stop) = timeout(LOOK_PAUSE, self.signals.next()).await {
                return;
            }
        }
    }

    #[expect(unsafe_code, reason = "kill has no safe form in std")]
    fn signal(&mut self, role: Role, number: libc::c_int) {
        for child in self.of_role(role) {
            let ended = child.try_wait().is_ok_and(|ended| ended.is_some());
            let Ok(pid) = libc::pid_t::try_from(child.id()) else { continue };
            if !ended {
                // SAFETY: the child has not been waited for, so the pid is still its own.
                unsafe { libc::kill(pid, number) };
            }
        }
    }

    fn reap(&mut self, role: Role) {
        for child in self.of_role(role) {
            drop(child.wait());
        }
        for kept in self.kept.iter().filter(|kept| kept.process.role == role) {
            drop(fs::remove_file(pid_file(self.service, &kept.process.name)));
        }
    }
}

/// The first death is answered at once.
fn backoff(early_deaths: u32) -> Duration {
    match early_deaths {
        0 | 1 => Duration::ZERO,
        again => BACKOFF_MIN.saturating_mul(1 << (again - 2).min(10)).min(BACKOFF_MAX),
    }
}

fn pid_file(service: &Service, name: &str) -> PathBuf {
    service.dir.join("run").join(format!("{name}.pid"))
}

fn log_file(service: &Service, name: &str) -> PathBuf {
    service.dir.join("log").join(format!("{name}.log"))
}

fn spawn(service: &Service, process: &Process) -> anyhow::Result<Child> {
    let name = &process.name;
    let path = log_file(service, name);
    let log = fs::OpenOptions::new().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("cannot write {}", path.display()))?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command
        .arg(process.role.subcommand())
        .arg("--config")
        .arg(&process.config)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("a second handle on a log")?)
        .stderr(log)
        // Ctrl-C is for the supervisor alone: it stops the others in order.
        .process_group(0);
    die_together(&mut command);
    let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    files::write_private(&pid_file(service, name), format!("{}\n", child.id()).as_bytes())?;
    Ok(child)
}

/// The kernel kills the child when this process ends, however it ends.
#[expect(unsafe_code, reason = "prctl has no safe form in std")]
fn die_together(command: &mut Command) {
    let parent = std::os::unix::process::parent_id;
    let own = std::process::id();
    // SAFETY: between fork and exec the closure only makes system calls, and allocates nothing
    // (errors are made from an errno).
    unsafe {
        command.pre_exec(move || {
            let kill = libc::c_ulong::try_from(libc::SIGKILL).unwrap_or_default();
            if libc::prctl(libc::PR_SET_PDEATHSIG, kill) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have ended before the kernel was told.
            if parent() != own {
                return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "ended".to_owned(),
        (Some(code), _) => format!("ended with exit code {code}"),
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        _ => status.to_string(),
    }
}

/// The end of a process's log, for an error message.
fn tail(service: &Service, name: &str) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(log_file(service, name))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("({error})"))
}
