//! Has the operating system end connections whose other side has fallen silent. Where a handler waits on the driver's own
//! connection, nothing else would: sqlx sets no keepalive, and does not share its sockets.

#[cfg(target_os = "linux")]
mod sockets {
    use std::os::fd::{BorrowedFd, RawFd};
    use std::time::Duration;

    use socket2::{SockRef, TcpKeepalive};

    /// A side that has said nothing for so long is asked whether it is there.
    const TIME: Duration = Duration::from_secs(10);
    const INTERVAL: Duration = Duration::from_secs(5);
    const RETRIES: u32 = 3;

    /// On all connections of this process to this port of any host, as the drivers do not tell which are theirs. Sockets that
    /// have keepalives already stay as they are.
    pub(crate) fn keep_alive(port: u16) {
        let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else { return };
        for descriptor in descriptors.flatten() {
            let number = descriptor.file_name().to_str().and_then(|name| name.parse().ok());
            // One that is not a socket, or was closed meanwhile, only says so.
            let _ = number.map_or(Ok(()), |number| keep_one_alive(number, port));
        }
    }

    #[allow(unsafe_code)]
    fn keep_one_alive(descriptor: RawFd, port: u16) -> std::io::Result<()> {
        // SAFETY: not kept. If another file gets the number in between, it is that which is asked what it is.
        let socket = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let socket = SockRef::from(&socket);
        let is_ours = socket.peer_addr()?.as_socket().is_some_and(|peer| peer.port() == port);
        if is_ours && !socket.keepalive()? {
            let keepalive = TcpKeepalive::new().with_time(TIME).with_interval(INTERVAL).with_retries(RETRIES);
            // Not `TCP_USER_TIMEOUT`: that also ends one whose server is well and takes nothing for a while, as in a COPY
            // that waits for a lock.
            socket.set_tcp_keepalive(&keepalive)?;
        }
        Ok(())
    }
}

use super::{Driver, Options};

/// On the connections to this server: sooner or later, each answers or ends.
pub(crate) fn keep_alive<DB: Driver>(options: &Options<DB>) {
    #[cfg(target_os = "linux")]
    if let Some(port) = DB::address(options).port {
        sockets::keep_alive(port);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = options;
}
