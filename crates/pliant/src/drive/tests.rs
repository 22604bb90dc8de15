mod model;
mod refused;
mod speed;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use engine::api::{DriveError, Durability, IoToken, Urgency};
use mio::{Events, Interest, Poll, Token, unix::SourceFd};

use super::{elevator::Elevator, *};

/// Generous: reached only when an answer never comes.
const PATIENCE: Duration = Duration::from_secs(20);
const DRIVE_BYTES: u64 = 64 << 20;

/// Removed with its content when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pliant-drive-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn drive(&self) -> PathBuf {
        self.0.join("drive")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("ours");
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Direct,
    Buffered,
    Uring,
    UringBuffered,
    Emulated,
}

impl Kind {
    fn is_ring(self) -> bool {
        matches!(self, Self::Uring | Self::UringBuffered)
    }
}

/// Every driver that works here. A system may refuse io_uring.
fn kinds() -> Vec<Kind> {
    let rings = [Kind::Uring, Kind::UringBuffered].into_iter().filter(|_| has_io_uring());
    [Kind::Direct, Kind::Buffered, Kind::Emulated].into_iter().chain(rings).collect()
}

fn has_io_uring() -> bool {
    let folder = Folder::new();
    match Rig::open(Kind::Uring, &folder.drive()) {
        Ok(_) => true,
        Err(error @ OpenError::Refused { .. }) => {
            eprintln!("skipped for io_uring: {error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

fn options(path: &Path, bytes: u64, kind: Kind) -> DriveOptions {
    DriveOptions {
        path: path.to_owned(),
        bytes,
        threads: 4,
        direct: !matches!(kind, Kind::Buffered | Kind::UringBuffered),
        kind: match kind {
            Kind::Direct | Kind::Buffered => DriverKind::Portable,
            Kind::Uring | Kind::UringBuffered => DriverKind::IoUring,
            Kind::Emulated => DriverKind::Portable,
        },
        flush: Flush::Auto,
        lock_wait: LOCK_WAIT,
    }
}

/// A driver and its answers.
struct Rig {
    driver: Box<dyn Driver>,
    answers: Receiver<Vec<Completion>>,
    /// Of a driver without threads.
    poll: Poll,
    early: BTreeMap<u64, Completion>,
}

impl Rig {
    fn open(kind: Kind, path: &Path) -> Result<Self, OpenError> {
        Self::open_sized(kind, path, DRIVE_BYTES)
    }

    fn open_sized(kind: Kind, path: &Path, bytes: u64) -> Result<Self, OpenError> {
        Self::open_with(kind, &options(path, bytes, kind))
    }

    fn open_with(kind: Kind, options: &DriveOptions) -> Result<Self, OpenError> {
        let (sender, answers) = mpsc::channel();
        // A receiver that is gone is a test that has ended.
        let sink = Sink::new(move |completions| drop(sender.send(completions)));
        let driver: Box<dyn Driver> = match kind {
            Kind::Emulated => Box::new(Emulated::open(fast(), options, sink)?),
            _ => super::open(options, sink)?,
        };
        let poll = Poll::new().expect("an epoll");
        if let Some(descriptor) = driver.descriptor() {
            let (source, readable) = (&mut SourceFd(&descriptor), Interest::READABLE);
            poll.registry().register(source, Token(0), readable).expect("it can be watched");
        }
        Ok(Self { driver, answers, poll, early: BTreeMap::new() })
    }

    /// Waits for some answers.
    fn answers(&mut self) -> Vec<Completion> {
        if self.driver.descriptor().is_none() {
            return self.answers.recv_timeout(PATIENCE).expect("an answer");
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let completions = self.driver.reap();
            if !completions.is_empty() {
                return completions;
            }
            assert!(Instant::now() < until, "no answer");
            if self.driver.is_quiet() {
                // Interrupted or not: the loop looks again.
                let mut events = Events::with_capacity(1);
                let polled = self.poll.poll(&mut events, Some(PATIENCE));
                assert!(polled.is_err() || !events.is_empty(), "what has ended wakes nobody");
            }
        }
    }

    fn answer(&mut self, token: u64) -> Completion {
        while !self.early.contains_key(&token) {
            for completion in self.answers() {
                let twice = self.early.insert(token_of(&completion), completion);
                assert_eq!(twice, None, "answered twice");
            }
        }
        self.early.remove(&token).expect("the loop has found it")
    }

    fn write(&mut self, token: u64, offset: u64, data: Vec<Bytes>, durable: bool) {
        self.driver.submit(vec![write(token, offset, data, durable)]);
        let done = Completion::Written { token: IoToken(token), result: Ok(()) };
        assert_eq!(self.answer(token), done);
    }

    fn read(&mut self, token: u64, offset: u64, length: u32) -> Bytes {
        self.driver.submit(vec![read(token, offset, length)]);
        match self.answer(token) {
            Completion::Read { result: Ok(data), .. } => data,
            other => panic!("the read gave {other:?}"),
        }
    }
}

/// An emulation that does not make the contract's tests slow.
fn fast() -> Profile {
    Profile { seek: Duration::from_micros(100), ops_per_sec: 10_000, mib_per_sec: 4000 }
}

fn token_of(completion: &Completion) -> u64 {
    match completion {
        Completion::Read { token, .. }
        | Completion::Written { token, .. }
        | Completion::Flushed { token, .. } => token.0,
    }
}

fn read(token: u64, offset: u64, length: u32) -> Request {
    Request::Read { token: IoToken(token), offset, length }
}

fn write(token: u64, offset: u64, data: Vec<Bytes>, durable: bool) -> Request {
    let durability = match (durable, token % 2) {
        (true, 0) => Durability::Everything,
        (true, _) => Durability::These,
        (false, _) => Durability::Later,
    };
    Request::Write { token: IoToken(token), offset, data, durability, urgency: Urgency::Request }
}

/// Bytes that differ from block to block, in memory that begins on no block boundary.
fn pattern(seed: u8, length: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(length + 1);
    bytes.extend_from_slice(&[0]);
    bytes.extend((0..length).map(|i| (i / 512 % 251) as u8 ^ seed));
    bytes.freeze().slice(1..)
}

#[test]
fn what_is_written_is_read_and_the_rest_is_zeros() {
    for kind in kinds() {
        let folder = Folder::new();
        let mut rig = Rig::open(kind, &folder.drive()).expect("a drive");
        let data = pattern(1, 8192);
        rig.write(1, 4096, vec![data.clone()], false);
        let back = rig.read(2, 0, 16384);
        assert_eq!(back.len(), 16384, "{kind:?}");
        assert_eq!(back.slice(4096..12288), data, "{kind:?}");
        assert!(back[..4096].iter().chain(&back[12288..]).all(|&b| b == 0), "{kind:?}");
        let end = rig.read(3, DRIVE_BYTES - 4096, 4096);
        assert_eq!(end.len(), 4096, "{kind:?}");
    }
}

#[test]
fn writes_in_the_background_are_answered_whatever_else_is_under_way() {
    for kind in kinds() {
        let folder = Folder::new();
        let mut rig = Rig::open(kind, &folder.drive()).expect("a drive");
        for round in 0..20 {
            let at = |index: u64| (round % 5 * 64 + index) * 4096;
            let token = |index: u64| 100 * round + index;
            let in_background = |index: u64| Request::Write {
                token: IoToken(token(index)),
                offset: at(index),
                data: vec![pattern(index as u8, 4096)],
                durability: Durability::Later,
                urgency: Urgency::Background,
            };
            let mut batch: Vec<_> = (0..40).map(in_background).collect();
            batch.push(write(token(40), at(40), vec![pattern(40, 4096)], true));
            batch.push(read(token(41), 0, 4096));
            rig.driver.submit(batch);
            for index in (0..42).rev() {
                match rig.answer(token(index)) {
                    Completion::Read { result: Ok(_), .. }
                    | Completion::Written { result: Ok(()), .. } => {}
                    other => panic!("{kind:?}: {other:?}"),
                }
            }
            assert_eq!(rig.read(token(50), at(39), 4096), pattern(39, 4096), "{kind:?}");
        }
    }
}

#[test]
fn segments_of_any_size_follow_each_other() {
    for kind in kinds() {
        let folder = Folder::new();
        let mut rig = Rig::open(kind, &folder.drive()).expect("a drive");
        // More segments than one system call takes, and more bytes than a bounce buffer holds.
        let small: Vec<_> = (0..1024).map(|i| pattern(i as u8, 64 + 4 * (i % 2))).collect();
        let used: usize = small.iter().map(Bytes::len).sum();
        let mut data = small;
        data.push(Bytes::new());
        data.push(pattern(9, (3 << 20) - used));
        let whole: Vec<u8> = data.iter().flatten().copied().collect();
        rig.write(1, 1 << 20, data, true);
        let back = rig.read(2, 1 << 20, 3 << 20);
        assert!(back == whole, "{kind:?}: the content differs");
    }
}

#[test]
fn memory_from_a_read_is_written_back_as_it_is() {
    for kind in kinds() {
        let folder = Folder::new();
        let mut rig = Rig::open(kind, &folder.drive()).expect("a drive");
        let data = pattern(5, 65536);
        rig.write(1, 0, vec![data.clone()], false);
        let (first, second) = (rig.read(2, 0, 32768), rig.read(3, 32768, 32768));
        rig.write(4, 1 << 20, vec![first, second], true);
        assert_eq!(rig.read(5, 1 << 20, 65536), data, "{kind:?}");
    }
}

fn prepare(token: u64, offset: u64, length: u32) -> Request {
    Request::Prepare { token: IoToken(token), offset, length }
}

#[test]
fn what_is_prepared_has_a_place_and_keeps_what_is_there() {
    use std::os::unix::fs::MetadataExt;
    const MIB: u64 = 1 << 20;
    for kind in kinds() {
        let folder = Folder::new();
        let mut rig = Rig::open(kind, &folder.drive()).expect("a drive");
        let place = || fs::metadata(folder.drive()).expect("it was made").blocks() * 512;
        // What was written as a whole is left alone.
        rig.write(1, 8 * MIB, vec![pattern(1, 1 << 20)], true);
        let before = place();
        rig.driver.submit(vec![prepare(2, 2 * MIB, 1 << 20), prepare(3, 8 * MIB, 1 << 20)]);
        for token in 2..4 {
            let done = Completion::Written { token: IoToken(token), result: Ok(()) };
            assert_eq!(rig.answer(token), done, "{kind:?}");
        }
        rig.driver.submit(vec![Request::Flush { token: IoToken(4) }]);
        rig.answer(4);
        assert!(place() >= before + MIB, "{kind:?}: {} after {before}", place());
        assert!(rig.read(5, 2 * MIB, 1 << 20).iter().all(|&byte| byte == 0), "{kind:?}");
        assert!(rig.read(6, 8 * MIB, 1 << 20) == pattern(1, 1 << 20), "{kind:?}");
        // The next time there is nothing to do, and the answer comes all the same.
        let after = place();
        rig.driver.submit(vec![prepare(7, 2 * MIB, 1 << 20)]);
        let done = Completion::Written { token: IoToken(7), result: Ok(()) };
        assert_eq!((rig.answer(7), place()), (done, after), "{kind:?}");
    }
}

#[test]
fn no_space_below_is_told_from_a_failure() {
    let of = |code| drive_error(&std::io::Error::from_raw_os_error(code));
    assert_eq!((of(libc::ENOSPC), of(libc::EDQUOT)), (DriveError::NoSpace, DriveError::NoSpace));
    assert!(matches!(of(libc::EIO), DriveError::Io(_)));
}

#[test]
fn every_request_of_a_large_batch_is_answered_once() {
    for kind in kinds() {
        let folder = Folder::new();
        let mut rig = Rig::open(kind, &folder.drive()).expect("a drive");
        let requests = |base: u64, make: fn(u64, u64) -> Request| {
            (0..500).map(move |i| make(base + i, i * 37 % 500 * 8192)).collect::<Vec<_>>()
        };
        rig.driver.submit(requests(0, |token, offset| {
            write(token, offset, vec![pattern(token as u8, 4096)], token % 3 == 0)
        }));
        rig.driver.submit((500..600).map(|t| Request::Flush { token: IoToken(t) }).collect());
        for token in 0..500 {
            let done = Completion::Written { token: IoToken(token), result: Ok(()) };
            assert_eq!(rig.answer(token), done, "{kind:?}");
        }
        for token in 500..600 {
            let done = Completion::Flushed { token: IoToken(token), result: Ok(()) };
            assert_eq!(rig.answer(token), done, "{kind:?}");
        }
        rig.driver.submit(requests(1000, |token, offset| read(token, offset, 4096)));
        for token in 1000..1500 {
            let Completion::Read { result: Ok(data), .. } = rig.answer(token) else {
                panic!("{kind:?}: {token} failed")
            };
            assert_eq!(data, pattern((token - 1000) as u8, 4096), "{kind:?}");
        }
        let rest = (rig.answers.try_recv(), rig.driver.reap());
        assert!(rig.early.is_empty() && rest.0.is_err() && rest.1.is_empty(), "{kind:?}");
    }
}

#[test]
fn dropping_a_driver_carries_out_what_is_under_way() {
    for kind in kinds() {
        let folder = Folder::new();
        let mut rig = Rig::open(kind, &folder.drive()).expect("a drive");
        let batch = (0..64).map(|t| write(t, t * 4096, vec![pattern(1, 4096)], true)).collect();
        rig.driver.submit(batch);
        drop(rig.driver);
        let answered: usize = rig.answers.iter().map(|completions| completions.len()).sum();
        // Who drops a driver without threads has nobody left to reap.
        assert_eq!(answered, if kind.is_ring() { 0 } else { 64 }, "{kind:?}");
        let mut rig = Rig::open(kind, &folder.drive()).expect("it is let go");
        for block in 0..64 {
            assert_eq!(rig.read(block, block * 4096, 4096), pattern(1, 4096), "{kind:?}");
        }
    }
}

/// The kernel lets go of the file of an io_uring request a while after it has told its end, and the
/// lock lasts as long as the file.
#[test]
fn a_drive_is_open_to_the_next_user_as_soon_as_its_driver_is_gone() {
    for kind in kinds() {
        let folder = Folder::new();
        for round in 0..25 {
            let mut rig = Rig::open(kind, &folder.drive())
                .unwrap_or_else(|error| panic!("{kind:?}, round {round}: {error}"));
            let batch = (0..32).map(|t| write(t, t * 4096, vec![pattern(1, 4096)], t % 4 == 0));
            rig.driver.submit(batch.collect());
            rig.answer(31);
        }
    }
}

#[test]
fn a_drive_keeps_its_content_and_is_refused_to_a_second_user() {
    for kind in kinds() {
        let folder = Folder::new();
        let mut rig = Rig::open(kind, &folder.drive()).expect("a drive");
        rig.write(1, 8192, vec![pattern(3, 4096)], true);
        let lock_wait = Duration::from_millis(50);
        let second = DriveOptions { lock_wait, ..options(&folder.drive(), DRIVE_BYTES, kind) };
        let refused = Rig::open_with(kind, &second).err();
        assert!(matches!(refused, Some(OpenError::InUse { .. })), "{kind:?}: {refused:?}");
        drop(rig);
        let mut rig = Rig::open(kind, &folder.drive()).expect("the first user is gone");
        assert_eq!(rig.read(1, 8192, 4096), pattern(3, 4096), "{kind:?}");
    }
}

/// Two nodes of one device have locks of their own.
#[test]
fn a_block_device_is_refused_to_a_second_user_under_another_name() {
    let folder = Folder::new();
    fs::File::create(folder.drive()).and_then(|f| f.set_len(DRIVE_BYTES)).expect("a file");
    let losetup = |arguments: &[&std::ffi::OsStr]| {
        let output = std::process::Command::new("losetup").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).expect("a path");
        output.status.success().then(|| PathBuf::from(text.trim()))
    };
    let (drive, node) = (folder.drive(), folder.0.join("node"));
    let made = losetup(&["--find".as_ref(), "--show".as_ref(), drive.as_os_str()]);
    let Some(device) = made else {
        return eprintln!("skipped: no loop device can be made here");
    };
    let number = std::os::unix::fs::MetadataExt::rdev(&fs::metadata(&device).expect("made"));
    let numbers = [libc::major(number), libc::minor(number)].map(|n| n.to_string());
    let mut mknod = std::process::Command::new("mknod");
    let known = mknod.arg(&node).arg("b").args(numbers).status().expect("coreutils");
    assert!(known.success(), "whoever makes loop devices makes nodes");
    for kind in kinds().into_iter().filter(|kind| *kind != Kind::Emulated) {
        let mut rig = Rig::open(kind, &device).expect("a drive");
        rig.write(1, 8192, vec![pattern(3, 4096)], true);
        let refused = Rig::open(kind, &node).err();
        assert!(matches!(refused, Some(OpenError::InUse { .. })), "{kind:?}: {refused:?}");
        drop(rig);
        let mut rig = Rig::open(kind, &node).expect("the first user is gone");
        assert_eq!(rig.read(1, 8192, 4096), pattern(3, 4096), "{kind:?}");
    }
    losetup(&["--detach".as_ref(), device.as_os_str()]).expect("ours");
}

#[test]
fn a_new_drive_is_sparse_and_an_old_one_must_have_its_size() {
    use std::os::unix::fs::MetadataExt;
    let folder = Folder::new();
    drop(Rig::open_sized(Kind::Direct, &folder.drive(), 1 << 40).expect("a drive"));
    let metadata = fs::metadata(folder.drive()).expect("it was made");
    assert_eq!(metadata.len(), 1 << 40);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    for wanted in [1 << 39, 1 << 41] {
        let refused = Rig::open_sized(Kind::Direct, &folder.drive(), wanted).err();
        assert!(matches!(refused, Some(OpenError::Size { .. })), "{refused:?}");
    }
    let missing = Rig::open(Kind::Direct, &folder.0.join("no/drive")).err();
    assert!(matches!(missing, Some(OpenError::Io { .. })), "{missing:?}");
}

#[test]
fn a_failed_read_is_reported_and_the_drive_goes_on() {
    for kind in kinds() {
        let folder = Folder::new();
        let mut rig = Rig::open(kind, &folder.drive()).expect("a drive");
        let file = fs::File::options().write(true).open(folder.drive()).expect("the drive");
        file.set_len(1 << 20).expect("cut off");
        rig.driver.submit(vec![read(1, (1 << 20) - 4096, 8192)]);
        let Completion::Read { result: Err(DriveError::Io(reason)), .. } = rig.answer(1) else {
            panic!("{kind:?}: bytes that do not exist were read")
        };
        assert!(!reason.is_empty());
        assert_eq!(rig.read(2, 0, 4096).len(), 4096, "{kind:?}");
    }
}

#[test]
#[should_panic(expected = "too far")]
fn a_request_beyond_the_drive_is_our_bug() {
    let folder = Folder::new();
    let mut rig = Rig::open(Kind::Direct, &folder.drive()).expect("a drive");
    rig.driver.submit(vec![read(1, DRIVE_BYTES - 4096, 8192)]);
}

#[test]
#[should_panic(expected = "no blocks")]
fn a_request_of_part_of_a_block_is_our_bug() {
    let folder = Folder::new();
    let mut rig = Rig::open(Kind::Buffered, &folder.drive()).expect("a drive");
    rig.driver.submit(vec![write(1, 4096, vec![pattern(1, 100)], true)]);
}

#[test]
fn an_emulated_seek_takes_its_time_and_a_sequential_run_takes_none() {
    let folder = Folder::new();
    let options = options(&folder.drive(), DRIVE_BYTES, Kind::Emulated);
    let (sender, answers) = mpsc::channel();
    let sink = Sink::new(move |completions| drop(sender.send(completions)));
    let seek = Duration::from_millis(20);
    let profile = Profile { seek, ops_per_sec: 10_000, mib_per_sec: 100_000 };
    let mut driver = Emulated::open(profile, &options, sink).expect("a drive");
    assert!(driver.description().contains("EMULATED"), "{}", driver.description());
    let take = |count: usize| {
        let mut seen = 0;
        while seen < count {
            seen += answers.recv_timeout(PATIENCE).expect("an answer").len();
        }
    };
    let begin = Instant::now();
    driver.submit(vec![write(0, 0, vec![pattern(1, 4096)], true)]);
    take(1);
    driver.submit((1..=5).map(|i| read(i, i * (8 << 20), 4096)).collect());
    take(5);
    assert!(begin.elapsed() >= 5 * seek, "{:?}", begin.elapsed());
    // 100 seeks would take two seconds.
    let begin = Instant::now();
    driver.submit((0..100).map(|i| read(i, (40 << 20) + 4096 * (i + 1), 4096)).collect());
    take(100);
    assert!(begin.elapsed() < 100 * seek, "{:?}", begin.elapsed());
}

#[test]
fn what_is_read_before_the_first_write_is_not_slowed() {
    let folder = Folder::new();
    let options = options(&folder.drive(), DRIVE_BYTES, Kind::Emulated);
    let (sender, answers) = mpsc::channel();
    let sink = Sink::new(move |completions| drop(sender.send(completions)));
    let profile = Profile { seek: 100 * PATIENCE, ops_per_sec: 1, mib_per_sec: 1 };
    let mut driver = Emulated::open(profile, &options, sink).expect("a drive");
    for token in 0..3 {
        driver.submit(vec![read(token, (3 - token) << 24, 4096)]);
        answers.recv_timeout(PATIENCE).expect("an answer without a seek");
    }
}

mod elevator_order {
    use super::*;

    fn elevator() -> Elevator {
        Elevator::new(Profile {
            seek: Duration::from_millis(8),
            ops_per_sec: 100,
            mib_per_sec: 100,
        })
    }

    fn next(elevator: &mut Elevator, now: Instant) -> Option<(u64, Duration)> {
        elevator.pop(now).map(|(request, cost)| (request.extent().expect("no flush").0, cost))
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn serves_upwards_from_the_head_then_from_the_lowest() {
        let mut elevator = elevator();
        let now = Instant::now();
        for (token, offset) in [30, 10, 20, 10].into_iter().enumerate() {
            elevator.push(now, read(token as u64, offset * MIB, 4096));
        }
        assert_eq!(next(&mut elevator, now).map(|n| n.0), Some(10 * MIB));
        elevator.push(now, read(9, 15 * MIB, 4096));
        let order: Vec<_> = std::iter::from_fn(|| next(&mut elevator, now)).collect();
        let offsets: Vec<_> = order.iter().map(|(offset, _)| offset / MIB).collect();
        assert_eq!(offsets, [15, 20, 30, 10]);
    }

    #[test]
    fn a_seek_costs_the_larger_of_seek_and_rate_and_bytes_cost_their_transfer() {
        let mut elevator = elevator();
        let now = Instant::now();
        let mut cost = |offset: u64, bytes: u32| {
            elevator.push(now, read(0, offset, bytes));
            next(&mut elevator, now).expect("it was pushed").1
        };
        let (seek, per_mib) = (Duration::from_millis(10), Duration::from_millis(10));
        assert_eq!(cost(0, 1 << 20), per_mib, "where the head is");
        assert_eq!(cost(2 * MIB, 1 << 20), per_mib, "1 MiB ahead is near");
        assert_eq!(cost(4 * MIB + 4096, 1 << 20), seek + per_mib, "further is a seek");
        assert_eq!(cost(0, 1 << 20), seek + per_mib, "backwards is a seek");
    }

    #[test]
    fn a_request_that_waited_long_goes_next() {
        let mut elevator = elevator();
        let now = Instant::now();
        elevator.push(now, read(0, 50 * MIB, 4096));
        assert_eq!(next(&mut elevator, now).map(|n| n.0), Some(50 * MIB));
        elevator.push(now, read(1, 0, 4096));
        let mut ahead = 51;
        let mut later = now;
        // A stream that always lies just ahead cannot keep the other waiting for ever.
        loop {
            elevator.push(later, read(2, ahead * MIB, 4096));
            let (offset, _) = next(&mut elevator, later).expect("two wait");
            if offset == 0 {
                break;
            }
            ahead += 1;
            later += Duration::from_millis(7);
            assert!(later.duration_since(now) < Duration::from_millis(60), "it starves");
        }
        assert!(ahead > 52, "the order of the elevator counts for something");
    }
}
