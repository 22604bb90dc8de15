//! How long a connection between our own processes may be silent before the kernel ends it.
//!
//! Without this a connection over which nothing gets through, because packets are dropped or the
//! far host is gone, stays up for a quarter of an hour; and when packets flow again, the kernel's next
//! attempt may be as far away as the outage was long.

use std::{io, os::fd::AsFd, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// Sent, and not acknowledged by the far kernel for this long: the connection ends (RFC 5482). It
/// bounds an attempt to connect as well, and how long the far process may read nothing while its
/// buffer is full; so it is longer than a busy process needs. Who must know sooner asks (`Ping`, beats).
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(15);
/// A connection without traffic is probed after this long, and then at this interval. The kernel
/// counts the probes against [`UNACKNOWLEDGED_MAX`].
const PROBE_AFTER: Duration = Duration::from_secs(5);
const PROBE_AGAIN: Duration = Duration::from_secs(2);

/// For links between a node manager, servers and the manager. Programs that use a volume are given
/// all the time they want.
pub fn limit(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_AGAIN);
    socket.set_tcp_keepalive(&probes)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernel_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        limit(&stream).expect("a TCP socket");
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().expect("set"), Some(UNACKNOWLEDGED_MAX));
        assert!(socket.keepalive().expect("set"));
        assert_eq!(socket.tcp_keepalive_time().expect("set"), PROBE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().expect("set"), PROBE_AGAIN);
    }
}
