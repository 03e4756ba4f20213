//! Three hosts with a database each, two processes that reach them by three addresses, and one client.
//!
//! The functions that run in production decide what a process knows, which server it chooses and what it sends there
//! ([`Process`]). Hosts, connections and the network are simulated. A host's log is the list of its writes. A position
//! is the length of that list, on a timeline, as with PostgreSQL. Standbys report their timeline without delay, and no
//! two promotions have the same timeline.
//!
//! A step is as large as what cannot be interrupted: a probe, the choice of a server, the checkout of a connection, or
//! the check of both with the statement that is sent right after it.

use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rocket_replicated::Reason;
use rocket_replicated::internals::{
    Access, Effects, Found, Instance, LetDown, Observation, Pin, Position, Process, ReportedRole, Route,
    instance,
};

use crate::search::{Fold, Model};

const HOSTS: usize = 3;
const ADDRESSES: usize = 3;
const NAMES: [char; HOSTS] = ['A', 'B', 'C'];

/// The number of failed probes after which a server is gone.
const GONE: u8 = 3;

/// A rule that the model's adapter leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    Nothing,
    /// A choice that was made in one term is followed in the next.
    Terms,
    /// Observations of one instance are believed of any other behind its address.
    Instances,
    /// Observations of an instance from before its recovery from a crash are believed afterwards.
    Opened,
    /// A second server that takes writes at launch is overlooked.
    Rivals,
    /// Any server that takes writes takes the place of a master that is gone.
    Proof,
    /// A master is never gone, however often its probes fail.
    Failures,
}

/// What may happen in a world, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Menu {
    pub faults: &'static [Fault],
    /// The hosts that may fail. The two slaves begin alike, so it is enough to let one of them fail.
    pub fragile: &'static [usize],
    /// The largest number of faults.
    pub most_faults: u8,
    pub writes: u8,
    /// The client writes, and reads what it wrote.
    pub client: bool,
    /// Each process keeps a handle that writes, from before the first fault.
    pub handles: bool,
    pub without: Without,
    pub follow_promotion: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Kill,
    /// A slave's database process recovers from a crash, and its position is further back for a moment.
    Crash,
    Partition,
    Promote,
    /// A server becomes a slave of the latest master, as by `pg_rewind`.
    Rejoin,
    Restart,
    /// The master's address moves to the latest master, and the connections that are open to it fall silent.
    Move,
    /// A server has no connection to spare.
    Fill,
}

#[derive(Clone, Debug)]
pub enum Action {
    Kill(usize),
    Return(usize),
    Crash(usize),
    Cut(usize, usize),
    Heal(usize, usize),
    Promote(usize),
    Rejoin(usize),
    Restart(usize),
    Move(usize),
    Fill(usize),
    Drain(usize),
    Replicate(usize),
    Probe(usize, usize, usize),
    Write(usize),
    Read(usize),
    Choose(Who, usize),
    CheckOut(Who, usize),
    Send(Who),
    Reply(usize, Asked),
}

/// The owner of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Client(usize),
    Handle(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    InTime,
    InVain,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Kill(host) => write!(f, "host {} dies", NAMES[host]),
            Self::Return(host) => write!(f, "host {} comes back as what it was", NAMES[host]),
            Self::Crash(host) => {
                write!(f, "the database on host {} recovers from a crash, one write back", NAMES[host])
            }
            Self::Cut(process, host) => write!(f, "process {process} cannot reach host {}", NAMES[host]),
            Self::Heal(process, host) => write!(f, "process {process} reaches host {} again", NAMES[host]),
            Self::Promote(host) => write!(f, "host {} is promoted", NAMES[host]),
            Self::Rejoin(host) => write!(f, "host {} becomes a slave of the latest master", NAMES[host]),
            Self::Restart(process) => write!(f, "process {process} is started again"),
            Self::Move(host) => write!(f, "address 0 moves to host {}", NAMES[host]),
            Self::Fill(host) => write!(f, "host {} has no connection to spare", NAMES[host]),
            Self::Drain(host) => write!(f, "host {} has connections to spare again", NAMES[host]),
            Self::Replicate(host) => write!(f, "host {} replays one record", NAMES[host]),
            Self::Probe(process, address, host) => {
                write!(
                    f,
                    "process {process} probes address {address} (new connections lead to {})",
                    NAMES[host]
                )
            }
            Self::Write(process) => write!(f, "the client begins a write at process {process}"),
            Self::Read(process) => write!(f, "the client begins a read at process {process}"),
            Self::Choose(who, prefer) => write!(f, "{who} chooses a server, slave {prefer} if it may"),
            Self::CheckOut(who, host) => {
                write!(f, "{who} checks out a connection (new ones lead to {})", NAMES[host])
            }
            Self::Send(who) => write!(f, "{who} sends its statement"),
            Self::Reply(process, Asked::InTime) => {
                write!(f, "process {process} replies to the client, with the master's position if it has one")
            }
            Self::Reply(process, Asked::InVain) => {
                write!(f, "process {process} replies to the client, with the time only")
            }
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(process) => write!(f, "the client's request at process {process}"),
            Self::Handle(process) => write!(f, "the handle that process {process} keeps"),
        }
    }
}

#[derive(Clone, Debug, Hash)]
struct Host {
    up: bool,
    /// True while it accepts no new connection.
    full: bool,
    /// The number of its database process, from 0.
    run: u8,
    /// The master of the host, or `None` if the host takes writes.
    follows: Option<usize>,
    timeline: u32,
    log: Vec<u8>,
}

impl Host {
    fn writable(&self) -> bool {
        self.up && self.follows.is_none()
    }

    fn position(&self) -> Position {
        Position::Lsn { timeline: self.timeline, lsn: self.log.len() as u64 }
    }

    fn observed(&self) -> Observation {
        let role = if self.follows.is_none() { ReportedRole::Master } else { ReportedRole::Slave };
        Observation { role, system: Some(1), position: Some(self.position()), ..Observation::default() }
    }
}

#[derive(Clone, Debug)]
struct Connection {
    address: usize,
    /// The use of the connection, or `None` for the monitor's.
    access: Option<Access>,
    host: usize,
    run: u8,
    generation: u64,
    /// The number of the process's term.
    term: u8,
    opened: u64,
    /// True if the connection has answered since the monitor's connection was opened.
    heard: bool,
    /// True if packets vanish, or the server's process has ended.
    dead: bool,
    /// True if the monitor has ended the statement under way.
    ended: bool,
}

/// The state of one request, or of one handle.
#[derive(Clone, Debug)]
struct Session {
    writes: bool,
    pin: Option<Pin>,
    route: Option<Route>,
    let_down: LetDown,
    failed_at_master: bool,
    conn: Option<Connection>,
    wrote: Vec<u8>,
}

impl Session {
    fn new(writes: bool, pin: Option<Pin>) -> Self {
        Self {
            writes,
            pin,
            route: None,
            let_down: LetDown::default(),
            failed_at_master: false,
            conn: None,
            wrote: Vec::new(),
        }
    }
}

/// One process of the application, with what the invariants have to know of it.
#[derive(Clone, Debug)]
struct Application {
    process: Arc<Process>,
    term: u8,
    probes: [Option<Connection>; ADDRESSES],
    failures: [u8; ADDRESSES],
    idle: Vec<Connection>,
    handle: Option<Session>,
    /// The servers that the process has seen in recovery.
    seen_in_recovery: [bool; ADDRESSES],
    /// The latest timeline of a master that the process followed.
    timeline: Option<u32>,
    /// The servers that took writes at the launch and still may. Empty once fewer than two are left.
    contesting: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Client {
    /// The process that serves the client's request, and the request.
    request: Option<(usize, Session)>,
    pin: Option<Pin>,
    acknowledged: Vec<u8>,
    /// The acknowledged writes that were in the log whose position the pin has.
    promised: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct World {
    menu: Menu,
    hosts: [Host; HOSTS],
    /// The hosts that each address leads to.
    addresses: [Vec<usize>; ADDRESSES],
    /// True where a process cannot reach a host, by process and host.
    cut: Vec<[bool; HOSTS]>,
    applications: Vec<Application>,
    client: Client,
    faults: u8,
    writes: u8,
    now: u64,
    /// The event that the latest step has shown.
    event: Option<Event>,
}

/// An event that a search has to come across. A search without it shows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Write,
    /// A write to a server that was promoted.
    LaterWrite,
    /// Two servers took writes at launch.
    Contest,
    CaughtUp,
    Pinned,
    MasterUnavailable,
    /// The master's address leads to another instance.
    Moved,
    /// A probe found a server without a connection to spare.
    Full,
}

/// A synthetic time: a millisecond for each step.
fn at(now: u64) -> Instant {
    static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    *ORIGIN + Duration::from_millis(now)
}

fn run(host: usize, run: u8) -> Instance {
    instance(host as u32 * 256 + u32::from(run))
}

impl Connection {
    fn instance(&self) -> Instance {
        run(self.host, self.run)
    }
}

impl Application {
    fn new(menu: &Menu) -> Self {
        Self {
            process: Arc::new(Process::new(ADDRESSES, menu.follow_promotion)),
            term: 0,
            probes: [const { None }; ADDRESSES],
            failures: [0; ADDRESSES],
            idle: Vec::new(),
            handle: menu.handles.then(|| Session::new(true, None)),
            seen_in_recovery: [false; ADDRESSES],
            timeline: None,
            contesting: Vec::new(),
        }
    }

    /// The knowledge of the process. It is shared with other states until it changes.
    fn process(&mut self) -> &mut Process {
        Arc::make_mut(&mut self.process)
    }

    fn put_back(&mut self, conn: Connection) {
        if self.process.keeps(conn.address, conn.generation) && !conn.ended {
            self.idle.push(conn);
        }
    }

    /// Drops the idle connections of earlier generations, which must not be used any more.
    fn drop_stale(&mut self) {
        let process = &self.process;
        self.idle.retain(|conn| process.keeps(conn.address, conn.generation) && !conn.ended);
    }
}

impl World {
    /// A master with two slaves, behind an address each, and this many processes that have probed them.
    pub fn new(menu: Menu, processes: usize) -> Self {
        let host = |follows| Host { up: true, full: false, run: 0, follows, timeline: 1, log: Vec::new() };
        let mut world = Self {
            menu,
            hosts: [host(None), host(Some(0)), host(Some(0))],
            addresses: [vec![0], vec![1], vec![2]],
            cut: vec![[false; HOSTS]; processes],
            applications: vec![Application::new(&menu); processes],
            client: Client { request: None, pin: None, acknowledged: Vec::new(), promised: Vec::new() },
            faults: 0,
            writes: 0,
            now: 1,
            event: None,
        };
        (0..processes).for_each(|process| world.launch(process));
        world
    }

    /// The world after the client's first write, with a pin that has its position.
    pub fn after_a_write(mut self) -> Self {
        let client = Who::Client(0);
        let write = [
            Action::Write(0),
            Action::Choose(client, 1),
            Action::CheckOut(client, 0),
            Action::Send(client),
            Action::Reply(0, Asked::InTime),
        ];
        write.iter().for_each(|action| self.step(action).expect("nothing is wrong so far"));
        self
    }

    /// As [`new`](Self::new), but the first slave's address leads to the second slave, too.
    pub fn shared(menu: Menu, processes: usize) -> Self {
        let mut world = Self::new(menu, processes);
        world.addresses[1] = vec![1, 2];
        world
    }

    /// Launches a process, which probes all servers before any write, the master first.
    fn launch(&mut self, process: usize) {
        self.applications[process] = Application::new(&self.menu);
        for address in 0..ADDRESSES {
            let host = self.addresses[address][0];
            self.probe(process, address, host);
        }
        let takes_writes = |address: &usize| {
            let host = self.addresses[*address][0];
            self.reaches(process, host) && self.hosts[host].writable() && !self.hosts[host].full
        };
        let contesting: Vec<_> = (0..ADDRESSES).filter(takes_writes).collect();
        if contesting.len() > 1 && contesting.contains(&0) {
            self.event = Some(Event::Contest);
            self.applications[process].contesting = contesting;
        }
    }

    fn reaches(&self, process: usize, host: usize) -> bool {
        self.hosts[host].up && !self.cut[process][host]
    }

    fn works(&self, process: usize, conn: &Connection) -> bool {
        !conn.dead && self.reaches(process, conn.host) && self.hosts[conn.host].run == conn.run
    }

    fn open(
        &mut self,
        process: usize,
        address: usize,
        access: Option<Access>,
        host: usize,
    ) -> Option<Connection> {
        if !self.reaches(process, host) || self.hosts[host].full {
            return None;
        }
        let application = &self.applications[process];
        Some(Connection {
            address,
            access,
            host,
            run: self.hosts[host].run,
            generation: application.process.generation(address),
            term: application.term,
            opened: self.now,
            heard: true,
            dead: false,
            ended: false,
        })
    }

    /// The open connections of a process, except for those of the monitor.
    fn connections(&mut self, process: usize) -> impl Iterator<Item = &mut Connection> {
        let application = &mut self.applications[process];
        let handle = application.handle.as_mut().and_then(|handle| handle.conn.as_mut());
        let request = self.client.request.as_mut().filter(|(at, _)| *at == process);
        let request = request.and_then(|(_, request)| request.conn.as_mut());
        application.idle.iter_mut().chain(handle).chain(request)
    }

    /// A probe by the monitor. If it needs a new connection, that leads to `host`.
    fn probe(&mut self, process: usize, address: usize, host: usize) {
        let conn = self.applications[process].probes[address].take();
        let is_full = conn.is_none() && self.reaches(process, host) && self.hosts[host].full;
        let conn = match conn {
            Some(conn) => Some(conn).filter(|conn| self.works(process, conn)),
            None => self.arrive(process, address, host),
        };
        let began = at(self.now);
        let observed = conn.as_ref().map(|conn| self.hosts[conn.host].observed());
        let without = self.menu.without;
        if is_full {
            self.event = Some(Event::Full);
        }
        let application = &mut self.applications[process];
        let failures = &mut application.failures[address];
        *failures = if observed.is_some() || is_full { 0 } else { (*failures + 1).min(GONE) };
        let gone = *failures == GONE;

        let old = application.process.master();
        let role = observed.as_ref().map(|observed| observed.role);
        if gone || role == Some(ReportedRole::Slave) {
            application.contesting.retain(|contesting| *contesting != address);
        }
        if application.contesting.len() < 2 {
            application.contesting.clear();
        }
        application.seen_in_recovery[address] |= role == Some(ReportedRole::Slave);

        let seen = conn.as_ref().map(Connection::instance);
        let found = match (without, observed) {
            // Probes of the master never fail for good.
            (Without::Failures, None) if address == old => Found::Full,
            (_, None) if is_full => Found::Full,
            (_, None) => Found::Nothing,
            (Without::Proof, Some(observed))
                if address != old
                    && role == Some(ReportedRole::Master)
                    && application.failures[old] == GONE =>
            {
                // The proof is forged.
                let slave = Observation { role: ReportedRole::Slave, ..observed.clone() };
                application.process().probed(address, seen, Found::Observed(slave), began);
                let later = Position::Lsn { timeline: 100 + u32::from(application.term), lsn: 0 };
                Found::Observed(Observation { position: Some(later), ..observed })
            }
            (_, Some(observed)) => Found::Observed(observed),
        };
        let effects = application.process().probed(address, seen, found, began);
        if without == Without::Rivals {
            application.process.overlook_rivals();
        }
        if effects.begins_term() {
            application.term += 1;
        }
        if application.process.master() == address
            && role == Some(ReportedRole::Master)
            && let Some(conn) = &conn
        {
            application.timeline = application.timeline.max(Some(self.hosts[conn.host].timeline));
        }
        application.probes[address] = conn.filter(|_| !effects.reconnects());
        self.end_connections(process, address, seen, &effects);
    }

    /// Opens a new connection of the monitor.
    fn arrive(&mut self, process: usize, address: usize, host: usize) -> Option<Connection> {
        let conn = self.open(process, address, None, host)?;
        let moved = self.applications[process].process().arrived(address, conn.instance());
        if moved {
            self.event = Some(Event::Moved);
        }
        for open in self.connections(process) {
            open.heard &= open.address != address;
            open.ended |= moved && open.address == address && open.instance() != conn.instance();
        }
        Some(conn)
    }

    /// Carries out the effects of a probe on connections, as the monitor does.
    fn end_connections(&mut self, process: usize, address: usize, seen: Option<Instance>, effects: &Effects) {
        let known = self.applications[process].process.clone();
        for open in self.connections(process) {
            let is_earlier = !known.keeps(open.address, open.generation);
            let access = open.access.expect("the monitor's own is not among them");
            open.ended |= is_earlier && effects.ends(open.address, access);
        }
        if let Some(seen) = seen {
            let is_other = |open: &&mut Connection| open.address == address && open.instance() != seen;
            if self.connections(process).filter(is_other).any(|open| open.heard && !open.ended) {
                self.applications[process].process().share(address);
            }
        }
        self.applications[process].drop_stale();
    }

    fn session(&mut self, who: Who) -> &mut Option<Session> {
        match who {
            Who::Handle(process) => &mut self.applications[process].handle,
            Who::Client(_) => panic!("a client's session is with its request"),
        }
    }

    fn take(&mut self, who: Who) -> Session {
        match who {
            Who::Client(_) => self.client.request.take().expect("only the client's request acts").1,
            Who::Handle(_) => self.session(who).take().expect("only a handle that is kept acts"),
        }
    }

    fn give_back(&mut self, who: Who, session: Session) {
        match who {
            Who::Client(process) => self.client.request = Some((process, session)),
            Who::Handle(_) => *self.session(who) = Some(session),
        }
    }

    /// Moves a session on that a server has let down, as `Session::move_on` does.
    fn move_on(&mut self, session: &mut Session, route: Route) -> Next {
        session.route = None;
        match route.access {
            Access::Writes => return Next::Refused,
            Access::MasterReads if session.let_down.master => return Next::Refused,
            Access::MasterReads => session.let_down.master = true,
            Access::SlaveReads => {
                session.let_down.slaves.push(route.server);
                session.let_down.slaves.sort_unstable();
                session.let_down.slaves.dedup();
            }
        }
        Next::Again
    }

    fn choose(&mut self, process: usize, session: &mut Session, prefer: usize) -> Next {
        let known = &self.applications[process].process;
        let route = known.choose(session.writes, session.pin.as_ref(), &session.let_down, prefer);
        session.route = Some(route);
        if route.access == Access::MasterReads && session.let_down.master {
            Next::Refused
        } else {
            Next::Again
        }
    }

    fn check_out(&mut self, process: usize, session: &mut Session, host: usize) -> Next {
        let route = session.route.expect("a checkout follows a choice");
        let application = &mut self.applications[process];
        if !application.process.answers(route.server, route.access) {
            return self.move_on(session, route);
        }
        let is_its = |conn: &Connection| conn.address == route.server && conn.access == Some(route.access);
        let idle = application.idle.iter().rposition(is_its);
        session.conn = match idle {
            Some(idle) => Some(application.idle.remove(idle)),
            None => self.open(process, route.server, Some(route.access), host),
        };
        if session.conn.is_none() { self.move_on(session, route) } else { Next::Again }
    }

    fn send(&mut self, process: usize, session: &mut Session) -> Result<Next, String> {
        let (route, conn) = session.route.zip(session.conn.take()).expect("what is sent follows a checkout");
        let known = self.applications[process].process.clone();
        if self.menu.without != Without::Terms && !route.is_current(&known) {
            self.applications[process].put_back(conn);
            return Ok(Next::Again);
        }
        if route.access == Access::Writes {
            self.write(process, session, conn)
        } else {
            self.read(process, session, route, conn)
        }
    }

    fn write(&mut self, process: usize, session: &mut Session, mut conn: Connection) -> Result<Next, String> {
        if !self.works(process, &conn) {
            return Ok(Next::Again);
        }
        let host = &self.hosts[conn.host];
        if !host.writable() {
            // The server refuses the write as read-only.
            self.applications[process].put_back(conn);
            return Ok(Next::Refused);
        }
        self.may_write(process, &conn)?;
        let write = self.writes;
        self.writes += 1;
        self.hosts[conn.host].log.push(write);
        if conn.ended {
            // The write is done, but its outcome is unknown.
            return Ok(Next::Again);
        }
        let is_later = self.applications[process].term > 0;
        self.event = Some(if is_later { Event::LaterWrite } else { Event::Write });
        session.wrote.push(write);
        conn.heard = true;
        self.applications[process].put_back(conn);
        Ok(Next::Done)
    }

    /// Checks invariants 1 and 3.
    fn may_write(&self, process: usize, conn: &Connection) -> Result<(), String> {
        let application = &self.applications[process];
        let (host, office) = (&self.hosts[conn.host], application.process.master());
        let name = NAMES[conn.host];
        if conn.term != application.term {
            return Err(format!(
                "process {process}, in term {}, wrote to {name} on a connection of term {}",
                application.term, conn.term
            ));
        }
        if conn.address != office {
            return Err(format!("process {process} wrote to {name}, but the master is at address {office}"));
        }
        if application.contesting.len() > 1 {
            return Err(format!(
                "process {process} wrote to {name}, though two servers took writes when it was launched"
            ));
        }
        if application.timeline.is_some_and(|timeline| host.timeline < timeline) {
            return Err(format!(
                "process {process} wrote to {name}, which was replaced by a promoted server"
            ));
        }
        Ok(())
    }

    fn read(
        &mut self,
        process: usize,
        session: &mut Session,
        route: Route,
        mut conn: Connection,
    ) -> Result<Next, String> {
        let works = self.works(process, &conn) && !conn.ended;
        if route.reason == Reason::CaughtUp
            && let Some(position) = session.pin.as_ref().and_then(|pin| pin.position().cloned())
        {
            let known = &self.applications[process].process;
            let (instance, opened) = match self.menu.without {
                Without::Instances => (known.instance(route.server).unwrap_or(conn.instance()), conn.opened),
                Without::Opened => (conn.instance(), 0),
                _ => (conn.instance(), conn.opened),
            };
            if !known.has_replayed(route.server, &position, instance, at(opened)) {
                if !works {
                    self.applications[process].process().suspect(route.server);
                    return Ok(self.move_on(session, route));
                }
                let host = &self.hosts[conn.host];
                let replayed = host.follows.map(|_| host.position());
                conn.heard = true;
                let known = self.applications[process].process();
                let now = at(self.now);
                if !replayed.is_some_and(|it| known.told(route.server, it, &position, conn.instance(), now)) {
                    self.applications[process].put_back(conn);
                    session.let_down.in_vain = true;
                    session.route = None;
                    return Ok(Next::Again);
                }
            }
        }
        if !works {
            match route.access {
                Access::SlaveReads => self.applications[process].process().suspect(route.server),
                _ if !session.failed_at_master => {
                    session.failed_at_master = true;
                    return Ok(Next::Again);
                }
                _ => {}
            }
            return Ok(self.move_on(session, route));
        }
        self.may_read(route, conn.host)?;
        self.event = match route.reason {
            Reason::CaughtUp => Some(Event::CaughtUp),
            Reason::Pinned => Some(Event::Pinned),
            Reason::MasterUnavailable => Some(Event::MasterUnavailable),
            _ => None,
        };
        conn.heard = true;
        self.applications[process].put_back(conn);
        Ok(Next::Done)
    }

    /// Checks invariant 2.
    fn may_read(&self, route: Route, host: usize) -> Result<(), String> {
        let Client { pin: Some(_), acknowledged, promised, .. } = &self.client else { return Ok(()) };
        let read = &self.hosts[host].log;
        let misses = |writes: &[u8]| writes.iter().find(|write| !read.contains(write)).copied();
        let name = NAMES[host];
        if route.reason == Reason::CaughtUp
            && let Some(write) = misses(promised)
        {
            return Err(format!("the client read from {name} as caught up, which has not its write {write}"));
        }
        if route.reason == Reason::MasterUnavailable {
            return Ok(());
        }
        // If all processes agree on the master in office, its log counts.
        let offices = self.applications.iter().map(|application| {
            let [host] = self.addresses[application.process.master()][..] else { return None };
            self.hosts[host].writable().then_some(host)
        });
        let offices: Option<Vec<_>> = offices.collect();
        if let Some(&[office, ref others @ ..]) = offices.as_deref()
            && others.iter().all(|other| *other == office)
        {
            let kept: Vec<_> =
                acknowledged.iter().filter(|write| self.hosts[office].log.contains(write)).copied().collect();
            if let Some(write) = misses(&kept) {
                return Err(format!(
                    "the client read from {name} ({:?}), which has not its write {write}; the master {} has",
                    route.reason, NAMES[office]
                ));
            }
        }
        Ok(())
    }

    /// Acknowledges the writes of the request, with a pin.
    fn reply(&mut self, process: usize, asked: Asked) {
        let Some((_, session)) = self.client.request.take() else { return };
        let master = self.applications[process].process.master();
        let mut position = None;
        let mut promised = None;
        if asked == Asked::InTime {
            let host = self.addresses[master][0];
            let conn = match self.applications[process].probes[master].take() {
                Some(conn) => Some(conn).filter(|conn| self.works(process, conn)),
                None => self.arrive(process, master, host),
            };
            if let Some(conn) = &conn
                && self.hosts[conn.host].follows.is_none()
            {
                position = Some(self.hosts[conn.host].position());
                promised = Some(self.hosts[conn.host].log.clone());
            }
            self.applications[process].probes[master] = conn;
            self.applications[process].drop_stale();
        }
        let client = &mut self.client;
        client.acknowledged.extend(session.wrote);
        client.pin = Some(Pin::of_write(position, session.pin.as_ref()));
        if let Some(log) = promised {
            client.promised =
                client.acknowledged.iter().filter(|write| log.contains(write)).copied().collect();
        }
    }

    fn act(&mut self, who: Who, action: &Action) -> Result<(), String> {
        let process = match who {
            Who::Client(process) | Who::Handle(process) => process,
        };
        let mut session = self.take(who);
        let next = match *action {
            Action::Choose(_, prefer) => self.choose(process, &mut session, prefer),
            Action::CheckOut(_, host) => self.check_out(process, &mut session, host),
            _ => self.send(process, &mut session)?,
        };
        let is_request = matches!(who, Who::Client(_));
        match next {
            Next::Again => {}
            // A read is over. A write gets a reply, and a handle is kept.
            Next::Done if is_request && !session.writes => return Ok(()),
            Next::Done => {}
            // The request ends with an error.
            Next::Refused if is_request && session.wrote.is_empty() => return Ok(()),
            Next::Refused => {
                session.route = None;
                session.let_down = LetDown::default();
            }
        }
        self.give_back(who, session);
        Ok(())
    }

    /// Adds the next actions of a session.
    fn next(&self, who: Who, process: usize, session: &Session, actions: &mut Vec<Action>) {
        let known = &self.applications[process].process;
        let stays = |route: &Route| self.menu.without == Without::Terms || route.stays(known, session.writes);
        if session.conn.is_some() {
            if !session.writes || self.writes < self.menu.writes {
                actions.push(Action::Send(who));
            }
            return;
        }
        match session.route.filter(stays) {
            Some(route) => {
                let hosts = &self.addresses[route.server];
                actions.extend(hosts.iter().map(|host| Action::CheckOut(who, *host)));
            }
            None => {
                let prefer: &[usize] = if session.writes { &[1] } else { &[1, 2] };
                actions.extend(prefer.iter().map(|prefer| Action::Choose(who, *prefer)));
            }
        }
    }

    /// The host that takes writes on the latest timeline.
    fn latest_master(&self) -> Option<usize> {
        let masters = (0..HOSTS).filter(|host| self.hosts[*host].writable());
        masters.max_by_key(|host| self.hosts[*host].timeline)
    }

    fn kill_connections(&mut self, is_dead: impl Fn(&Connection) -> bool) {
        for process in 0..self.applications.len() {
            for conn in self.connections(process) {
                conn.dead |= is_dead(conn);
            }
            let probes = self.applications[process].probes.iter_mut().flatten();
            probes.for_each(|conn| conn.dead |= is_dead(conn));
        }
    }

    fn faults(&self, actions: &mut Vec<Action>) {
        let may = |fault| self.menu.faults.contains(&fault) && self.faults < self.menu.most_faults;
        for (index, host) in self.hosts.iter().enumerate() {
            let is_fragile = self.menu.fragile.contains(&index);
            let may = |fault| is_fragile && may(fault);
            let is_slave = host.follows.is_some();
            if !host.up {
                actions.push(Action::Return(index));
            } else if may(Fault::Kill) {
                actions.push(Action::Kill(index));
            }
            if host.full {
                actions.push(Action::Drain(index));
            } else if host.up && may(Fault::Fill) {
                actions.push(Action::Fill(index));
            }
            if host.up && is_slave && may(Fault::Crash) && !host.log.is_empty() {
                actions.push(Action::Crash(index));
            }
            if host.up && is_slave && may(Fault::Promote) {
                actions.push(Action::Promote(index));
            }
            let latest = self.latest_master();
            if may(Fault::Rejoin)
                && latest.is_some_and(|latest| latest != index && host.follows != Some(latest))
            {
                actions.push(Action::Rejoin(index));
            }
            if may(Fault::Move) && latest == Some(index) && self.addresses[0] != [index] {
                actions.push(Action::Move(index));
            }
            for (process, cut) in self.cut.iter().enumerate() {
                if cut[index] {
                    actions.push(Action::Heal(process, index));
                } else if may(Fault::Partition) {
                    actions.push(Action::Cut(process, index));
                }
            }
            let can_replay = |follows: usize| {
                let master = &self.hosts[follows];
                host.up && master.up && master.log.len() > host.log.len() && master.log.starts_with(&host.log)
            };
            if host.follows.is_some_and(can_replay) {
                actions.push(Action::Replicate(index));
            }
        }
        if may(Fault::Restart) {
            actions.extend((0..self.applications.len()).map(Action::Restart));
        }
    }

    fn happen(&mut self, action: &Action) {
        match *action {
            Action::Kill(host) => {
                self.hosts[host].up = false;
                self.kill_connections(|conn| conn.host == host);
            }
            Action::Return(host) => {
                self.hosts[host].up = true;
                self.hosts[host].run += 1;
                return;
            }
            Action::Replicate(host) => {
                let Some(master) = self.hosts[host].follows else { return };
                let next = self.hosts[master].log[self.hosts[host].log.len()];
                self.hosts[host].log.push(next);
                return;
            }
            Action::Crash(host) => {
                self.hosts[host].log.pop();
                self.kill_connections(|conn| conn.host == host);
            }
            Action::Cut(process, host) => self.cut[process][host] = true,
            Action::Heal(process, host) => {
                self.cut[process][host] = false;
                return;
            }
            Action::Promote(host) => {
                let latest = self.hosts.iter().map(|host| host.timeline).max();
                self.hosts[host].timeline = latest.unwrap_or_default() + 1;
                self.hosts[host].follows = None;
            }
            Action::Rejoin(host) => {
                let Some(master) = self.latest_master() else { return };
                let Host { log, timeline, .. } = self.hosts[master].clone();
                let joining = &mut self.hosts[host];
                let is_restarted = !joining.up || joining.follows.is_none() || !log.starts_with(&joining.log);
                let common = joining.log.iter().zip(&log).take_while(|(ours, theirs)| ours == theirs).count();
                joining.log.truncate(common);
                joining.timeline = timeline;
                joining.follows = Some(master);
                joining.up = true;
                if is_restarted {
                    joining.run += 1;
                    self.kill_connections(|conn| conn.host == host);
                }
            }
            Action::Fill(host) => self.hosts[host].full = true,
            Action::Drain(host) => {
                self.hosts[host].full = false;
                return;
            }
            Action::Restart(process) => {
                if self.client.request.as_ref().is_some_and(|(at, _)| *at == process) {
                    self.client.request = None;
                }
                self.launch(process);
            }
            Action::Move(host) => {
                self.addresses[0] = vec![host];
                self.kill_connections(|conn| conn.address == 0);
            }
            _ => unreachable!("not the world's own doing"),
        }
        self.faults += 1;
    }

    /// Checks invariant 4. It concerns the only server that takes writes, if that can be reached, and is the master in
    /// office or proves that it succeeds the master. A new request writes to that server after some probes.
    fn writes_again(&self, process: usize) -> Result<(), String> {
        let application = &self.applications[process];
        let reached = |address: usize| {
            let hosts = self.addresses[address].iter();
            hosts.copied().filter(|host| self.reaches(process, *host) && self.hosts[*host].writable())
        };
        let writable: Vec<_> =
            (0..ADDRESSES).flat_map(|address| reached(address).map(move |host| (address, host))).collect();
        let [(address, host)] = writable[..] else { return Ok(()) };
        if self.hosts[host].full {
            return Ok(());
        }
        // Behind an address of several servers, nothing leads the monitor to the one that takes writes.
        if self.addresses[address].len() > 1 {
            return Ok(());
        }
        let proves = self.menu.follow_promotion
            && application.seen_in_recovery[address]
            && application.timeline.is_some_and(|timeline| self.hosts[host].timeline > timeline);
        if address != application.process.master() && !proves {
            return Ok(());
        }
        let mut later = self.clone();
        for _ in 0..2 * GONE {
            for address in 0..ADDRESSES {
                later.now += 1;
                later.probe(process, address, later.addresses[address][0]);
            }
        }
        let mut session = Session::new(true, None);
        for _ in 0..12 {
            later.now += 1;
            later.choose(process, &mut session, 1);
            let server = session.route.map_or(0, |route| route.server);
            later.check_out(process, &mut session, later.addresses[server][0]);
            if session.conn.is_none() {
                continue;
            }
            let sent = later.send(process, &mut session);
            if let Next::Done = sent.map_err(|what| format!("after some more probes {what}"))? {
                return Ok(());
            }
        }
        Err(format!("process {process} never writes to {} again, however often it looks", NAMES[host]))
    }
}

/// The outcome of an action for its session.
enum Next {
    Again,
    Done,
    Refused,
}

impl Model for World {
    type Action = Action;
    type Event = Event;

    fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.faults(&mut actions);
        for (process, application) in self.applications.iter().enumerate() {
            for (address, hosts) in self.addresses.iter().enumerate() {
                let is_open = application.probes[address].is_some();
                let hosts = if is_open { &hosts[..1] } else { &hosts[..] };
                actions.extend(hosts.iter().map(|host| Action::Probe(process, address, *host)));
            }
            if let Some(handle) = &application.handle {
                self.next(Who::Handle(process), process, handle, &mut actions);
            }
            if self.menu.client && self.client.request.is_none() {
                if self.writes < self.menu.writes {
                    actions.push(Action::Write(process));
                }
                if self.client.pin.is_some() {
                    actions.push(Action::Read(process));
                }
            }
        }
        if let Some((process, request)) = &self.client.request {
            if request.wrote.is_empty() {
                self.next(Who::Client(*process), *process, request, &mut actions);
            } else {
                actions.extend([Asked::InTime, Asked::InVain].map(|asked| Action::Reply(*process, asked)));
            }
        }
        actions
    }

    fn step(&mut self, action: &Action) -> Result<(), String> {
        self.now += 1;
        self.event = None;
        match *action {
            Action::Probe(process, address, host) => {
                // Failures in a row are two steps: the first failure, and all that make a server gone.
                let again = if self.applications[process].failures[address] == 0 { 1 } else { GONE };
                for _ in 0..again {
                    self.probe(process, address, host);
                    if self.applications[process].failures[address] == 0 {
                        break;
                    }
                }
            }
            Action::Write(process) => {
                self.client.request = Some((process, Session::new(true, self.client.pin.clone())));
            }
            Action::Read(process) => {
                self.client.request = Some((process, Session::new(false, self.client.pin.clone())));
            }
            Action::Choose(who, _) | Action::CheckOut(who, _) | Action::Send(who) => self.act(who, action)?,
            Action::Reply(process, asked) => self.reply(process, asked),
            _ => self.happen(action),
        }
        Ok(())
    }

    fn event(&self) -> Option<Event> {
        self.event
    }

    fn check(&self, checked: &mut HashSet<u64>) -> Result<(), String> {
        (0..self.applications.len()).try_for_each(|process| {
            // A process sees no more of the world than this.
            let mut hasher = Fold::new();
            self.applications[process].fingerprint(None, &mut hasher);
            (&self.addresses, &self.cut[process]).hash(&mut hasher);
            let as_seen = |host: &Host| (host.up, host.full, host.run, host.follows.is_none(), host.timeline);
            self.hosts.each_ref().map(as_seen).hash(&mut hasher);
            if checked.insert(hasher.finish()) { self.writes_again(process) } else { Ok(()) }
        })
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = Fold::new();
        let Self { menu: _, hosts, addresses, cut, applications, client, faults, writes, now: _, event: _ } =
            self;
        (hosts, addresses, faults, writes).hash(&mut hasher);
        let Client { request, pin, acknowledged, promised } = client;
        (pin, acknowledged, promised).hash(&mut hasher);
        let mut processes: Vec<_> = (0..applications.len())
            .map(|process| {
                let mut hasher = Fold::new();
                let request = request.as_ref().filter(|(at, _)| *at == process).map(|(_, request)| request);
                applications[process].fingerprint(request, &mut hasher);
                cut[process].hash(&mut hasher);
                hasher.finish()
            })
            .collect();
        // Processes are alike, so their order makes no difference.
        processes.sort_unstable();
        processes.hash(&mut hasher);
        hasher.finish()
    }
}

impl Application {
    fn fingerprint(&self, request: Option<&Session>, hasher: &mut Fold) {
        let Self { process, term, probes, failures, idle, handle, seen_in_recovery, timeline, contesting } =
            self;
        process.hash_known(hasher);
        (failures, seen_in_recovery, timeline, contesting).hash(hasher);
        let conn = |conn: &Connection, hasher: &mut Fold| {
            let Connection {
                address,
                access,
                host,
                run,
                generation,
                term: opened_in,
                opened,
                heard,
                dead,
                ended,
            } = conn;
            let is_present = process.keeps(*address, *generation);
            let known = process.seen(*address).is_some_and(|seen| at(*opened) <= seen);
            let access = access.map(|access| access as u8);
            (address, access, host, run, is_present, opened_in == term, known, heard, dead, ended)
                .hash(hasher);
        };
        for probe in probes {
            probe.is_some().hash(hasher);
            probe.iter().for_each(|probe| conn(probe, hasher));
        }
        idle.len().hash(hasher);
        idle.iter().for_each(|idle| conn(idle, hasher));
        for session in [handle.as_ref(), request] {
            let Some(Session { writes, pin, route, let_down, failed_at_master, conn: in_hand, wrote }) =
                session
            else {
                false.hash(hasher);
                continue;
            };
            (writes, pin, let_down, failed_at_master, wrote).hash(hasher);
            let route = route.map(|route| {
                let Route { server, access, reason, term } = route;
                (server, access as u8, reason, term == process.term())
            });
            route.hash(hasher);
            in_hand.is_some().hash(hasher);
            in_hand.iter().for_each(|in_hand| conn(in_hand, hasher));
        }
    }
}
