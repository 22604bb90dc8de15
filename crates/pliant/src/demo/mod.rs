//! `pliant demo`: the main job, live, on one machine and without root.
//!
//! Starts a service of its own, streams real input onto a volume on emulated HDD, keeps a
//! verifying load running, and makes one request that changes size, media, zone and rate at
//! once. Then it kills the primary, waits for re-mirroring, and reads everything back. It ends
//! well only if nothing was lost and no program saw an error.

mod input;
mod report;
mod service;
mod stream;
mod timeline;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::load::{self, nbd::Address};
use report::Report;
use service::Service;
use timeline::Mark;

const GIB: u64 = 1 << 30;
/// Where the load works: behind the streamed input, inside the original size.
const LOAD_OFFSET: u64 = 6 * GIB;
const LOAD_BYTES: u64 = 64 << 20;
const STREAM_BYTES_MAX: u64 = 4 * GIB;
/// Long enough that a quantile means something, short enough to watch.
const QUIET: Duration = Duration::from_secs(5);

/// Change one volume's size, media, zone, IOPS and throughput while it is in use, then kill its
/// primary; prove that nothing was lost.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  pliant demo\n  pliant demo --dir /tmp/demo --input ~/Music --keep"
)]
pub struct Args {
    /// Where the demo keeps its service and its picture
    #[arg(long, default_value = "target/demo")]
    dir: PathBuf,
    /// File or directory to stream onto the volume; cargo's unpacked sources when absent
    #[arg(long)]
    input: Option<PathBuf>,
    /// Keep the service's directory afterwards
    #[arg(long)]
    keep: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let input = match &args.input {
        Some(path) => path.clone(),
        None => input::default_input()?,
    };
    fs::create_dir_all(&args.dir).with_context(|| format!("making {}", args.dir.display()))?;
    let dir = args.dir.canonicalize()?;
    let began = Instant::now();
    say(began, "starting a service: zones a and b, three servers each");
    let service = Service::start(&dir.join("service"))?;
    let outcome = Demo { service: &service, began, start: Instant::now(), marks: Vec::new() }
        .play(&input, &dir);
    service.stop()?;
    if !args.keep {
        service.remove()?;
    }
    let report = outcome?;
    print!("{}", report.table(began.elapsed()));
    println!("picture: {}", dir.join("timeline.svg").display());
    let failures = report.failures();
    ensure!(failures.is_empty(), "the demo failed: {}", failures.join("; "));
    println!("all of it held: 0 I/O errors, equal checksums, nothing lost");
    Ok(())
}

struct Demo<'a> {
    service: &'a Service,
    began: Instant,
    /// What the times of samples and marks count from.
    start: Instant,
    marks: Vec<Mark>,
}

/// A stretch of the demo, from the load's start.
#[derive(Debug, Clone, Copy, Default)]
struct Stretch {
    from: Duration,
    to: Duration,
}

impl Demo<'_> {
    fn play(mut self, input: &Path, dir: &Path) -> anyhow::Result<Report> {
        let (volume, address) = self.make_volume()?;
        let load = load::start(&load_params(&address), self.start);
        let written = self.stream(&address, input)?;
        let before = self.stretch(QUIET);
        let (change, cut_over, bytes_moved) = self.modify(&volume)?;
        let after = self.stretch(QUIET);
        let failover = self.fail_over(&volume)?;
        self.stretch(Duration::from_secs(3));
        ensure!(!load.has_failed(), "a worker of the load gave up");
        let ended = load.stop();
        say(self.began, "reading everything back");
        let read = stream::read(&address, written.bytes, &mut |_| {})?;
        let (blocks_checked, blocks_wrong) = ended.verify()?;
        let grown = self.grown_end_works(&address)?;
        let title = "One request: 8 to 12 GiB, HDD to SSD, zone a to b, new rate; then kill -9 of the primary";
        let picture = timeline::draw(title, &ended.seen.samples, &self.marks);
        fs::write(dir.join("timeline.svg"), picture).context("writing timeline.svg")?;
        let stretches = report::Stretches { before, change, cut_over, after, failover };
        Ok(Report {
            written,
            read,
            blocks_checked,
            blocks_wrong,
            grown,
            bytes_moved,
            stretches,
            seen: ended.seen,
        })
    }

    fn make_volume(&mut self) -> anyhow::Result<(String, Address)> {
        say(self.began, "creating 8 GiB on HDD (emulated) in zone a, with a mirror");
        let api = self.service.api();
        let zone = self.service.zone('a');
        let body = json!({"zone": zone, "size_gib": 8, "volume_type": "standard"});
        let made = api.post("/v1/volumes", &body)?;
        let volume = text(&made, "volume_id")?;
        self.wait_volume(&volume, "available", |v| v["state"] == "available")?;
        let instances = api.get("/v1/instances")?;
        let here = |i: &&Value| i["zone"] == zone.as_str();
        let instance = instances["instances"].as_array().and_then(|all| all.iter().find(here));
        let instance =
            instance.and_then(|i| i["instance_id"].as_str()).context("no instance in zone a")?;
        let body = json!({"volume_id": volume, "instance_id": instance, "device": "/dev/sdf", "kernel_device": false});
        api.post("/v1/attachments", &body)?;
        let attached =
            self.wait_volume(&volume, "attached", |v| v["attachments"][0]["state"] == "attached")?;
        let uris = attached["attachments"][0]["nbd_uris"].as_array().context("no NBD address")?;
        let uri = uris.iter().filter_map(Value::as_str).find(|u| u.starts_with("nbd+unix"));
        let uri = uri.context("no NBD address on a unix socket")?;
        self.start = Instant::now();
        Ok((volume, Address::parse(uri).context("an NBD address that does not parse")?))
    }

    fn stream(&mut self, address: &Address, path: &Path) -> anyhow::Result<stream::Streamed> {
        self.mark("stream");
        say(self.began, &format!("streaming {} onto it, under load", path.display()));
        let from = Instant::now();
        let mut shown = Instant::now();
        let began = self.began;
        let mut progress = |bytes: u64| {
            if shown.elapsed() >= Duration::from_secs(2) {
                shown = Instant::now();
                let speed = stream::mib_per_sec(bytes, from);
                say(began, &format!("  {} MiB, {speed:.0} MiB/s", bytes >> 20));
            }
        };
        let input = input::open(path)?;
        let written = stream::write(address, input, STREAM_BYTES_MAX, &mut progress)?;
        ensure!(written.bytes > 0, "{} is empty: nothing to stream", path.display());
        say(
            self.began,
            &format!("  {} MiB written, SHA-256 {}", written.bytes >> 20, written.sha256),
        );
        self.mark("streamed");
        Ok(written)
    }

    /// Returns the whole change, the cut-over within it, and the bytes moved.
    fn modify(&mut self, volume: &str) -> anyhow::Result<(Stretch, Stretch, u64)> {
        let zone = self.service.zone('b');
        say(self.began, "ONE request: 8 to 12 GiB, HDD to SSD, zone a to b, 6,000 IOPS, 400 MiB/s");
        let body = json!({"size_gib": 12, "volume_type": "gp3", "zone": zone, "iops": 6000, "throughput_mib": 400});
        let from = self.mark("request");
        self.service.api().post(&format!("/v1/volumes/{volume}/modify"), &body)?;
        let mut steps = Vec::new();
        let mut shown = Instant::now();
        let mut cut_over = Stretch::default();
        let (mut primary, mut looked) = (None, from);
        loop {
            let now = self.service.volume(volume)?;
            // The switch is over in milliseconds: it lies between two looks.
            let serving = primary_of(&now);
            if primary.is_some() && serving != primary {
                let to = self.mark("new primary") + Duration::from_millis(100);
                cut_over = Stretch { from: looked, to };
            }
            (primary, looked) = (serving, self.start.elapsed());
            let modification = &now["modification"];
            let state = text(modification, "state")?;
            let step = text(modification, "step")?;
            if steps.last() != Some(&(state.clone(), step.clone())) {
                if state == "optimizing" && steps.last().is_none_or(|(s, _)| *s != state) {
                    self.mark("optimizing");
                }
                say(self.began, &format!("  {state}: {step}"));
                steps.push((state.clone(), step));
            }
            if shown.elapsed() >= Duration::from_secs(1) {
                shown = Instant::now();
                self.show_progress(modification, from);
            }
            match state.as_str() {
                "completed" => {
                    let to = self.mark("completed");
                    ensure!(!cut_over.to.is_zero(), "no change of primary was seen");
                    let moved = modification["bytes_moved"].as_u64().unwrap_or(0);
                    self.check_target(&now, &zone)?;
                    return Ok((Stretch { from, to }, cut_over, moved));
                }
                "failed" => bail!("the modification failed: {}", modification["status_message"]),
                _ => std::thread::park_timeout(Duration::from_millis(20)),
            }
            ensure!(
                self.start.elapsed() - from < Duration::from_secs(150),
                "the modification is stuck"
            );
        }
    }

    fn check_target(&self, volume: &Value, zone: &str) -> anyhow::Result<()> {
        let wanted = json!({"size_gib": 12, "volume_type": "gp3", "iops": 6000, "throughput_mib": 400, "zone": zone});
        for (name, value) in wanted.as_object().expect("an object") {
            ensure!(&volume[name] == value, "{name} is {}, not {value}", volume[name]);
        }
        for replica in volume["replicas"].as_array().context("replicas")? {
            ensure!(
                replica["media"] == "ssd" && replica["zone"] == zone,
                "a replica stayed behind: {replica}"
            );
        }
        Ok(())
    }

    fn fail_over(&mut self, volume: &str) -> anyhow::Result<Stretch> {
        let before = self.service.volume(volume)?;
        let server = primary_of(&before).context("no primary")?;
        let epoch = before["epoch"].as_u64().unwrap_or(0);
        say(self.began, &format!("kill -9 of the primary, {server}"));
        let from = self.mark("kill -9");
        self.service.kill(&server)?;
        self.wait_volume(volume, "served by its mirror", |v| {
            v["epoch"].as_u64() > Some(epoch) && primary_of(v).is_some_and(|p| p != server)
        })?;
        let served = self.mark("mirror serves");
        say(self.began, "  the mirror serves; making a new mirror on another server");
        self.wait_volume(volume, "mirrored again", |v| {
            // The dead server's replica stays listed, as spare, until the server can free it.
            let elsewhere = |r: &Value| r["role"] == "spare" || r["server"] != server.as_str();
            let replicas = v["replicas"].as_array();
            v["degraded"] == false && replicas.is_some_and(|all| all.iter().all(elsewhere))
        })?;
        self.mark("mirrored again");
        say(self.began, "  mirrored again");
        Ok(Stretch {
            from: from.saturating_sub(Duration::from_millis(50)),
            to: served + Duration::from_millis(500),
        })
    }

    /// The end that the volume grew by reads as zeros, and takes and keeps data.
    fn grown_end_works(&self, address: &Address) -> anyhow::Result<bool> {
        let mut client = load::nbd::Client::connect(address, Duration::from_secs(60))?;
        let offset = 12 * GIB - 4096;
        let zeros = client.call(load::nbd::Command::Read, offset, 4096, &[])?;
        let data = [0x5a; 4096];
        let wrote = client.call(load::nbd::Command::Write, offset, 4096, &data)?;
        let back = client.call(load::nbd::Command::Read, offset, 4096, &[])?;
        Ok(client.size() == 12 * GIB
            && zeros.data == [0; 4096]
            && wrote.error == 0
            && back.data == data)
    }

    fn wait_volume(
        &self,
        volume: &str,
        what: &str,
        reached: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let from = Instant::now();
        loop {
            let now = self.service.volume(volume)?;
            if reached(&now) {
                return Ok(now);
            }
            ensure!(
                from.elapsed() < Duration::from_secs(60),
                "{volume} was not {what} within a minute: {now}"
            );
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn show_progress(&self, modification: &Value, from: Duration) {
        let percent = modification["progress_percent"].as_f64().unwrap_or(0.0);
        let moved = modification["bytes_moved"].as_u64().unwrap_or(0);
        let elapsed = (self.start.elapsed() - from).as_secs_f64();
        let eta = if percent > 0.0 { elapsed * (100.0 - percent) / percent } else { f64::NAN };
        let eta = if eta.is_nan() { "-".to_owned() } else { format!("{eta:.0} s") };
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let speed = moved as f64 / (1 << 20) as f64 / elapsed.max(0.001);
        say(
            self.began,
            &format!("  {percent:.0} %, {} MiB moved, {speed:.0} MiB/s, ETA {eta}", moved >> 20),
        );
    }

    /// Lets the load run by itself for a while.
    fn stretch(&self, length: Duration) -> Stretch {
        let from = self.start.elapsed();
        let until = Instant::now() + length;
        while let Some(rest) = until.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(rest);
        }
        Stretch { from, to: self.start.elapsed() }
    }

    fn mark(&mut self, label: &str) -> Duration {
        let at = self.start.elapsed();
        let at_us = u64::try_from(at.as_micros()).expect("minutes fit");
        self.marks.push(Mark { at_us, label: label.to_owned() });
        at
    }
}

fn load_params(address: &Address) -> load::Params {
    load::Params {
        address: address.clone(),
        offset: LOAD_OFFSET,
        length: LOAD_BYTES,
        workers: 4,
        read_percent: 50,
        request_bytes: 4096,
        seed: 0x9e37,
        rate: None,
        patience: Duration::from_secs(60),
    }
}

fn primary_of(volume: &Value) -> Option<String> {
    let primary = volume["replicas"].as_array()?.iter().find(|r| r["role"] == "primary")?;
    primary["server"].as_str().map(str::to_owned)
}

fn text(value: &Value, name: &str) -> anyhow::Result<String> {
    value[name].as_str().map(str::to_owned).with_context(|| format!("no '{name}' in {value}"))
}

fn say(began: Instant, line: &str) {
    println!("[{:6.2} s] {line}", began.elapsed().as_secs_f64());
}
