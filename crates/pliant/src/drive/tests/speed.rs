//! How fast the drivers are, side by side. Run it by hand, on a machine that does nothing else:
//! `cargo test --release -p pliant drive::tests::speed -- --ignored --nocapture`
//!
//! Every round asks each driver in turn, and `fio` with io_uring and O_DIRECT if it is installed;
//! medians are printed: operations per second, and CPU-seconds per 100,000 operations of the whole
//! process (this test's own loop included, as a server's would be).
#![allow(unsafe_code)]

use super::*;

const SPEED_BYTES: u64 = 512 << 20;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(1500);

#[derive(Debug, Clone, Copy)]
enum Load {
    Read { depth: usize },
    Append { blocks: u64 },
    Stream,
}

const LOADS: [(&str, Load); 6] = [
    ("read 4K, depth 1", Load::Read { depth: 1 }),
    ("read 4K, depth 32", Load::Read { depth: 32 }),
    ("durable append, 1 block", Load::Append { blocks: 1 }),
    ("durable append, 8 blocks", Load::Append { blocks: 8 }),
    ("durable append, 32 blocks", Load::Append { blocks: 32 }),
    ("write 1M, depth 4", Load::Stream),
];

impl Load {
    fn depth(self) -> usize {
        match self {
            Self::Read { depth } => depth,
            Self::Append { .. } => 1,
            Self::Stream => 4,
        }
    }

    fn request(self, number: u64, content: &Bytes) -> Request {
        match self {
            Self::Read { .. } => {
                let block = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                read(number, block % (SPEED_BYTES / BLOCK) * BLOCK, 4096)
            }
            Self::Append { blocks } => {
                let offset = number * blocks * BLOCK % (SPEED_BYTES / 2);
                let bytes = usize::try_from(blocks * BLOCK).expect("small");
                let (durability, urgency) = (Durability::These, Urgency::Request);
                let (token, data) = (IoToken(number), vec![content.slice(..bytes)]);
                Request::Write { token, offset, data, durability, urgency }
            }
            Self::Stream => {
                write(number, number * (1 << 20) % SPEED_BYTES, vec![content.clone()], false)
            }
        }
    }

    fn fio(self) -> Vec<String> {
        let (rw, size, depth, sync) = match self {
            Self::Read { depth } => ("randread", 4096, depth, 0),
            Self::Append { blocks } => ("write", blocks * BLOCK, 1, 1),
            Self::Stream => ("write", 1 << 20, 4, 0),
        };
        vec![
            format!("--rw={rw}"),
            format!("--bs={size}"),
            format!("--iodepth={depth}"),
            format!("--fdatasync={sync}"),
        ]
    }
}

fn cpu_seconds() -> f64 {
    // SAFETY: the kernel fills the structure; all zeros is a valid one.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        seconds(usage.ru_utime) + seconds(usage.ru_stime)
    }
}

/// Operations per second and CPU-seconds per 100,000.
fn run(rig: &mut Rig, load: Load, content: &Bytes) -> (f64, f64) {
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    let (mut asked, mut answered) = (0, 0);
    let mut room = load.depth();
    loop {
        let more = if begin.elapsed() < ROUND { room } else { 0 };
        let batch: Vec<_> = (0..more as u64).map(|i| load.request(asked + i, content)).collect();
        asked += batch.len() as u64;
        if !batch.is_empty() {
            rig.driver.submit(batch);
        }
        if asked == answered {
            break;
        }
        room = rig.answers().len();
        for done in rig.answers.try_iter() {
            room += done.len();
        }
        answered += room as u64;
    }
    let rate = answered as f64 / begin.elapsed().as_secs_f64();
    (rate, (cpu_seconds() - cpu) * 1e5 / answered as f64)
}

fn fio(path: &Path, load: Load) -> Option<(f64, f64)> {
    let output = std::process::Command::new("fio")
        .args(["--name=raw", "--ioengine=io_uring", "--direct=1", "--time_based=1", "--thread"])
        .args(["--runtime=1500ms", "--output-format=json"])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--size={SPEED_BYTES}"))
        .args(load.fio())
        .output()
        .ok()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let job = &report["jobs"][0];
    let kind = if matches!(load, Load::Read { .. }) { "read" } else { "write" };
    let rate = job[kind]["iops"].as_f64()?;
    let share = (job["usr_cpu"].as_f64()? + job["sys_cpu"].as_f64()?) / 100.0;
    Some((rate, share * 1e5 / rate))
}

fn median(mut values: Vec<(f64, f64)>) -> (f64, f64) {
    let mut middle = |key: fn(&(f64, f64)) -> f64| {
        values.sort_by(|a, b| key(a).total_cmp(&key(b)));
        values.get(values.len() / 2).map_or(f64::NAN, key)
    };
    (middle(|v| v.0), middle(|v| v.1))
}

#[test]
#[ignore = "a measurement, which takes two minutes of an idle machine"]
fn speed() {
    let folder = Folder::new();
    let content = pattern(7, 1 << 20);
    let kinds = [Kind::Uring, Kind::Direct];
    {
        let mut rig = Rig::open_sized(Kind::Uring, &folder.drive(), SPEED_BYTES).expect("a drive");
        (0..SPEED_BYTES >> 20)
            .for_each(|i| rig.write(i, i << 20, vec![content.clone()], i % 64 == 63));
    }
    for (name, load) in LOADS {
        let mut results = vec![Vec::new(); kinds.len() + 1];
        for _ in 0..ROUNDS {
            for (results, kind) in results.iter_mut().zip(kinds) {
                let mut rig = Rig::open_sized(kind, &folder.drive(), SPEED_BYTES).expect("a drive");
                results.push(run(&mut rig, load, &content));
            }
            results[kinds.len()].extend(fio(&folder.drive(), load));
        }
        let names = ["io_uring", "portable", "fio"];
        for (name_of, results) in names.into_iter().zip(results) {
            let (rate, cpu) = median(results);
            println!("{name:26} {name_of:9} {rate:9.0}/s {cpu:7.2} CPU-s per 100k");
        }
    }
}
