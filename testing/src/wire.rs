//! A wire to a server: a TCP proxy that fails as networks do.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rocket::tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use rocket::tokio::net::{TcpListener, TcpSocket, TcpStream};
use rocket::tokio::sync::{mpsc as commands, watch};
use rocket::tokio::{self, runtime};

/// A wire to a server: a TCP proxy on a port of its own that a test can lead elsewhere, hold up and cut while
/// connections are open.
///
/// It ends with its owner, and closes all of its connections then.
///
/// A change has its effect when the call returns. Calls block for a moment. The wire has a thread of its own, so it
/// works in blocking and asynchronous tests.
#[derive(Debug)]
pub struct Wire {
    port: u16,
    commands: Option<commands::UnboundedSender<Command>>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

type Change = Box<dyn FnOnce(&mut Way) + Send>;

struct Command {
    change: Change,
    done: mpsc::Sender<()>,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
}

/// The settings of a wire. Connections are numbered from 1, in the order of their acceptance.
#[derive(Clone)]
struct Way {
    targets: Vec<u16>,
    accepts: bool,
    held: bool,
    delay: Duration,
    accepted: usize,
    /// Connections up to this number are silent for ever.
    silent: usize,
    /// Connections up to this number lead to a host that is gone.
    lost: usize,
    /// The ports by which servers know connections that are silent for ever.
    silent_ports: BTreeSet<u16>,
    /// Connections up to this number are closed.
    cut: usize,
}

impl Wire {
    /// A wire to this port of the loopback interface.
    pub fn to(target: u16) -> Self {
        Self::to_each(&[target])
    }

    /// A wire that leads each new connection to the next of these ports.
    pub fn to_each(targets: &[u16]) -> Self {
        let way = Way {
            targets: targets.to_owned(),
            accepts: true,
            held: false,
            delay: Duration::ZERO,
            accepted: 0,
            silent: 0,
            lost: 0,
            silent_ports: BTreeSet::new(),
            cut: 0,
        };
        let counts = Arc::<Counts>::default();
        let (commands, received) = commands::unbounded_channel();
        let (tell, port) = mpsc::channel();
        let thread = thread::spawn({
            let counts = counts.clone();
            move || {
                // Dropped at the end of the thread, with all connections.
                let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(serve(way, received, counts, tell));
            }
        });
        Self { port: port.recv().unwrap(), commands: Some(commands), counts, thread: Some(thread) }
    }

    /// The wire's port, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a server, with the port of the wire in place of its own.
    pub fn url(&self, url: &str) -> String {
        const HOST: &str = "127.0.0.1:";

        let (before, after) = url.split_once(HOST).expect("a URL of a test's server");
        let rest = after.trim_start_matches(|character: char| character.is_ascii_digit());
        format!("{before}{HOST}{}{rest}", self.port)
    }

    /// Leads new connections to this port.
    pub fn lead_to(&self, target: u16) {
        self.lead_to_each(&[target]);
    }

    /// Leads each new connection to the next of these ports.
    pub fn lead_to_each(&self, targets: &[u16]) {
        let targets = targets.to_owned();
        self.change(|way| way.targets = targets);
    }

    /// Silences the connections that are open now. Nothing passes any more, and neither end is told: the connections
    /// stay open, as do those to a host that is gone, or those that a router has forgotten.
    pub fn silence_open(&self) {
        self.change(|way| way.silent = way.accepted);
    }

    /// As [`silence_open`](Self::silence_open), to a host that is gone. The server's sessions end, with their
    /// transactions and locks, and the clients are not told.
    pub fn lose_open(&self) {
        self.change(|way| (way.silent, way.lost) = (way.accepted, way.accepted));
    }

    /// As [`silence_open`](Self::silence_open), for one connection. The server sees this port as the client's.
    pub fn silence(&self, client_port: u16) {
        self.change(move |way| {
            way.silent_ports.insert(client_port);
        });
    }

    /// Refuses new connections, as a port without a listener does.
    pub fn refuse(&self) {
        self.change(|way| way.accepts = false);
    }

    /// Holds all traffic back until [`pass`](Self::pass), which lets all of it through.
    pub fn hold(&self) {
        self.change(|way| way.held = true);
    }

    /// Delays all traffic by this time.
    pub fn delay(&self, delay: Duration) {
        self.change(move |way| way.delay = delay);
    }

    /// Takes back all of the above, except for silent connections.
    pub fn pass(&self) {
        self.change(|way| (way.accepts, way.held, way.delay) = (true, false, Duration::ZERO));
    }

    /// Closes the connections that are open now, silent or not.
    pub fn cut(&self) {
        self.change(|way| way.cut = way.accepted);
    }

    /// The number of connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::Acquire)
    }

    /// The number of open connections, silent or not. A silent one is open even if both ends have left.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::Acquire)
    }

    fn change(&self, change: impl FnOnce(&mut Way) + Send + 'static) {
        let (done, wait) = mpsc::channel();
        let commands = self.commands.as_ref().expect("there until dropped");
        let sent = commands.send(Command { change: Box::new(change), done });
        assert!(sent.is_ok() && wait.recv().is_ok(), "the wire's thread has panicked");
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the wire's thread has panicked");
        }
    }
}

/// Serves until the sender of the commands is dropped.
async fn serve(
    way: Way,
    mut commands: commands::UnboundedReceiver<Command>,
    counts: Arc<Counts>,
    tell: mpsc::Sender<u16>,
) {
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // Keeps the port reserved while the wire does not listen there.
    let reserved = bind(free);
    let address = reserved.local_addr().unwrap();
    let mut listener = Some(bind(address).listen(1024).unwrap());
    tell.send(address.port()).unwrap();

    let ways = watch::Sender::new(way);
    loop {
        tokio::select! {
            biased;
            command = commands.recv() => {
                let Some(Command { change, done }) = command else { return };
                ways.send_modify(change);
                let accepts = ways.borrow().accepts;
                if accepts != listener.is_some() {
                    listener = accepts.then(|| bind(address).listen(1024).unwrap());
                }
                // A test that has ended by a panic does not wait for this.
                let _ = done.send(());
            }
            client = accept(&listener) => {
                // A client that has already left does not count as a connection.
                let Ok(client) = client else { continue };
                let mut number = 0;
                ways.send_modify(|way| {
                    way.accepted += 1;
                    number = way.accepted;
                });
                counts.accepted.fetch_add(1, Ordering::AcqRel);
                counts.open.fetch_add(1, Ordering::AcqRel);
                let (way, counts) = (ways.subscribe(), counts.clone());
                tokio::spawn(async move {
                    let mut cut = way.clone();
                    tokio::select! {
                        // However this ends, both sockets of the connection are closed then.
                        _ = connect(client, number, way) => {}
                        _ = cut.wait_for(|way| way.cut >= number) => {}
                    }
                    counts.open.fetch_sub(1, Ordering::AcqRel);
                });
            }
        }
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    // Only this wire uses the option on its port, so other programs cannot share the port.
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn accept(listener: &Option<TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(client, _)| client),
        None => std::future::pending().await,
    }
}

async fn connect(mut client: TcpStream, number: usize, way: watch::Receiver<Way>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut gate = Gate { number, port: 0, way };
    gate.pass().await;
    let target = {
        let way = gate.way.borrow();
        way.targets[(number - 1) % way.targets.len()]
    };
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?;
    server.set_nodelay(true)?;
    gate.port = server.local_addr()?.port();
    let mut lost = gate.way.clone();
    {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let both = async {
            let there = forward(from_client, to_server, gate.clone());
            let back = forward(from_server, to_client, gate);
            tokio::try_join!(there, back)
        };
        tokio::select! {
            ended = both => return ended.map(drop),
            _ = lost.wait_for(|way| way.lost >= number) => {}
        }
    }
    drop(server);
    std::future::pending::<()>().await;
    drop(client);
    Ok(())
}

async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut gate: Gate,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        // The end of the stream and errors have to pass the gate, too.
        gate.pass().await;
        match read? {
            0 => return to.shutdown().await,
            length => to.write_all(&buffer[..length]).await?,
        }
    }
}

/// The gate that all traffic of a connection has to pass.
#[derive(Clone)]
struct Gate {
    number: usize,
    /// The port that the server sees as the client's.
    port: u16,
    way: watch::Receiver<Way>,
}

impl Gate {
    /// Returns when traffic may pass; never for a silent connection.
    async fn pass(&mut self) {
        let delay = self.way.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let (number, port) = (self.number, self.port);
        let open = |way: &Way| number > way.silent && !way.silent_ports.contains(&port) && !way.held;
        if self.way.wait_for(open).await.is_err() {
            // The wire has ended, and so does this task.
            std::future::pending::<()>().await;
        }
    }
}
