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

/// A wire to a server: a TCP proxy on a port of its own that a test can lead elsewhere, hold up and cut while connections
/// are open.
///
/// It ends with its owner, and closes all of its connections then.
///
/// What is changed has its effect when the call returns. Calls block for a moment, as the wire has a thread
/// of its own: it works below blocking and asynchronous tests.
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

/// How the wire leads. Connections are numbered from 1, as they are accepted.
#[derive(Clone)]
struct Way {
    targets: Vec<u16>,
    accepts: bool,
    held: bool,
    delay: Duration,
    accepted: usize,
    /// All up to here are silent for ever.
    silent: usize,
    /// All up to here lead to a host that is gone.
    lost: usize,
    /// The ports by which servers know connections that are silent for ever.
    silent_ports: BTreeSet<u16>,
    /// All up to here are closed.
    cut: usize,
}

impl Wire {
    /// Leads to this port of the loopback interface.
    pub fn to(target: u16) -> Self {
        Self::to_each(&[target])
    }

    /// Leads each new connection to the next of these ports.
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
                // Dropped at the end, with all connections.
                let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(serve(way, received, counts, tell));
            }
        });
        Self { port: port.recv().unwrap(), commands: Some(commands), counts, thread: Some(thread) }
    }

    /// On 127.0.0.1.
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

    /// Leads new connections there.
    pub fn lead_to(&self, target: u16) {
        self.lead_to_each(&[target]);
    }

    /// Leads each new connection to the next of these.
    pub fn lead_to_each(&self, targets: &[u16]) {
        let targets = targets.to_owned();
        self.change(|way| way.targets = targets);
    }

    /// Nothing comes through any more on the connections that are open now, and nothing tells either end: they
    /// stay open, as those to a host that is gone, or those that a router has forgotten.
    pub fn silence_open(&self) {
        self.change(|way| way.silent = way.accepted);
    }

    /// As [`silence_open`](Self::silence_open), to a host that is gone: the server's sessions end, and with them
    /// their transactions and locks, and the clients hear nothing of it.
    pub fn lose_open(&self) {
        self.change(|way| (way.silent, way.lost) = (way.accepted, way.accepted));
    }

    /// As [`silence_open`](Self::silence_open), for the one connection whose client has this port in the eyes of
    /// its server.
    pub fn silence(&self, client_port: u16) {
        self.change(move |way| {
            way.silent_ports.insert(client_port);
        });
    }

    /// New connections are refused, as where nobody listens.
    pub fn refuse(&self) {
        self.change(|way| way.accepts = false);
    }

    /// Nothing comes through until [`pass`](Self::pass), and then all of it.
    pub fn hold(&self) {
        self.change(|way| way.held = true);
    }

    /// Whatever comes through is late by this.
    pub fn delay(&self, delay: Duration) {
        self.change(move |way| way.delay = delay);
    }

    /// Takes back all of the above, but not for what is silent.
    pub fn pass(&self) {
        self.change(|way| (way.accepts, way.held, way.delay) = (true, false, Duration::ZERO));
    }

    /// Closes what is open now, silent or not.
    pub fn cut(&self) {
        self.change(|way| way.cut = way.accepted);
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::Acquire)
    }

    /// How many connections there are, silent or not. A silent one is open even if both ends have left.
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

/// Until the sender of the commands is gone.
async fn serve(
    way: Way,
    mut commands: commands::UnboundedReceiver<Command>,
    counts: Arc<Counts>,
    tell: mpsc::Sender<u16>,
) {
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // Keeps the port while nobody listens there.
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
                // A test that has ended by a panic does not wait for it.
                let _ = done.send(());
            }
            client = accept(&listener) => {
                // A client that has left again already is no connection.
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
                        // However it ends, both of its sockets are closed then.
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
    // Nobody else does this: the port is this wire's alone.
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
        // An end and an error are news, too.
        gate.pass().await;
        match read? {
            0 => return to.shutdown().await,
            length => to.write_all(&buffer[..length]).await?,
        }
    }
}

/// What all has to pass.
#[derive(Clone)]
struct Gate {
    number: usize,
    /// Ours, at the server.
    port: u16,
    way: watch::Receiver<Way>,
}

impl Gate {
    /// Never, for a connection that is silent.
    async fn pass(&mut self) {
        let delay = self.way.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let (number, port) = (self.number, self.port);
        let open = |way: &Way| number > way.silent && !way.silent_ports.contains(&port) && !way.held;
        if self.way.wait_for(open).await.is_err() {
            // The wire has ended: so does this task.
            std::future::pending::<()>().await;
        }
    }
}
