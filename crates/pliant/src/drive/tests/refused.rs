//! A system that refuses io_uring, as containers do.
#![allow(unsafe_code)]

use super::*;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

/// Refuses io_uring_setup to this thread, and to those that it starts, from now on.
fn refuse_io_uring() {
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = u32::try_from(libc::SYS_io_uring_setup).expect("a small number");
    let mut filter = [
        // Load the number of the system call; compare; return.
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, number),
        instruction(0x06, 0, 0, REFUSE),
        instruction(0x06, 0, 0, ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live until the kernel has copied them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        assert_eq!(libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program), 0);
    }
}

#[test]
fn a_refused_io_uring_is_told_with_its_remedy_and_the_default_does_without() {
    // The filter cannot be taken off again, so a thread of its own wears it.
    let confined = std::thread::spawn(|| {
        refuse_io_uring();
        let folder = Folder::new();
        let refused = Rig::open(Kind::Uring, &folder.drive()).err().expect("it is refused");
        assert!(matches!(refused, OpenError::Refused { .. }), "{refused:?}");
        assert!(refused.to_string().contains("seccomp"), "{refused}");
        let mut options = options(&folder.drive(), DRIVE_BYTES, Kind::Uring);
        options.kind = DriverKind::Auto;
        let (sender, answers) = mpsc::channel();
        let sink = Sink::new(move |completions| drop(sender.send(completions)));
        let mut driver = super::super::open(&options, sink).expect("the other driver");
        assert!(driver.description().starts_with("portable"), "{}", driver.description());
        driver.submit(vec![read(1, 0, 4096)]);
        answers.recv_timeout(PATIENCE).expect("it serves");
    });
    confined.join().expect("it ends well");
}
