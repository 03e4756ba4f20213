//! Makes the operating system end connections whose other side has fallen silent. Nothing else would, where a handler
//! waits on the driver's own connection: sqlx sets no keepalive and does not share its sockets.

#[cfg(target_os = "linux")]
mod sockets {
    use std::os::fd::{BorrowedFd, RawFd};
    use std::time::Duration;

    use socket2::{SockRef, TcpKeepalive};

    /// The time without a byte from the other side after which the first keepalive probe is sent.
    const TIME: Duration = Duration::from_secs(10);
    const INTERVAL: Duration = Duration::from_secs(5);
    const RETRIES: u32 = 3;

    /// Sets keepalive on all connections of this process to this port, on any host: the drivers do not tell which
    /// sockets are theirs. Sockets with keepalive already on stay as they are.
    pub(crate) fn keep_alive(port: u16) {
        let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else { return };
        for descriptor in descriptors.flatten() {
            let number = descriptor.file_name().to_str().and_then(|name| name.parse().ok());
            // A descriptor that is not a socket, or was closed meanwhile, returns an error, which does not matter.
            let _ = number.map_or(Ok(()), |number| keep_one_alive(number, port));
        }
    }

    #[allow(unsafe_code)]
    fn keep_one_alive(descriptor: RawFd, port: u16) -> std::io::Result<()> {
        // SAFETY: the borrow ends with this function. If another file gets the number in between, the calls below ask
        // that file.
        let socket = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let socket = SockRef::from(&socket);
        let is_ours = socket.peer_addr()?.as_socket().is_some_and(|peer| peer.port() == port);
        if is_ours && !socket.keepalive()? {
            let keepalive = TcpKeepalive::new().with_time(TIME).with_interval(INTERVAL).with_retries(RETRIES);
            // Not `TCP_USER_TIMEOUT`: it would also end a connection whose server is well but reads nothing for a
            // while, as during a COPY that waits for a lock.
            socket.set_tcp_keepalive(&keepalive)?;
        }
        Ok(())
    }
}

use super::{Driver, Options};

/// Sets keepalive on the connections to this server, so that each of them answers or ends.
pub(crate) fn keep_alive<DB: Driver>(options: &Options<DB>) {
    #[cfg(target_os = "linux")]
    if let Some(port) = DB::address(options).port {
        sockets::keep_alive(port);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = options;
}
