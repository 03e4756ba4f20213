//! The faults that a wire can make.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rocket_replicated_testing::Wire;
use rocket_replicated_testing::server::wait_for;

const PAUSE: Duration = Duration::from_millis(200);

/// A server that answers each byte with its name. Returns its port.
fn server(name: u8) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            thread::spawn(move || {
                while client.read_exact(&mut [0]).is_ok() {
                    client.write_all(&[name]).unwrap();
                }
            });
        }
    });
    port
}

fn connect(wire: &Wire) -> TcpStream {
    let client = TcpStream::connect(("127.0.0.1", wire.port())).unwrap();
    client.set_read_timeout(Some(PAUSE)).unwrap();
    client
}

/// The name of the server that answers now, or the error.
fn ask(mut client: &TcpStream) -> Result<u8, ErrorKind> {
    client.write_all(b"?").map_err(|error| error.kind())?;
    let mut name = [0];
    client.read_exact(&mut name).map_err(|error| error.kind())?;
    Ok(name[0])
}

fn is_silent(client: &TcpStream) {
    assert_eq!(ask(client), Err(ErrorKind::WouldBlock));
}

fn answers(client: &TcpStream) -> u8 {
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let name = ask(client).unwrap();
    client.set_read_timeout(Some(PAUSE)).unwrap();
    name
}

#[test]
fn a_wire_leads_new_connections_elsewhere_and_to_several_in_turn() {
    let (a, b) = (server(b'a'), server(b'b'));
    let wire = Wire::to(a);
    let old = connect(&wire);
    assert_eq!(answers(&old), b'a');
    wire.lead_to(b);
    assert_eq!((answers(&old), answers(&connect(&wire))), (b'a', b'b'));
    wire.lead_to_each(&[a, b]);
    let mut both: Vec<_> = (0..4).map(|_| answers(&connect(&wire))).collect();
    both.sort_unstable();
    assert_eq!(both, b"aabb");
    assert_eq!(wire.accepted(), 6);
    assert_eq!(wire.url("postgres://app@127.0.0.1:5432/app?a=b"), {
        format!("postgres://app@127.0.0.1:{}/app?a=b", wire.port())
    });
}

#[test]
fn silenced_connections_stay_silent_while_new_ones_pass() {
    let wire = Wire::to(server(b'a'));
    for silence in [Wire::silence_open, Wire::lose_open] {
        let old = connect(&wire);
        assert_eq!(answers(&old), b'a');
        silence(&wire);
        is_silent(&old);
        assert_eq!(answers(&connect(&wire)), b'a');
        wire.pass();
        is_silent(&old);
        wire.cut();
        wait_for("the end of it", || ask(&old).is_err_and(|error| error != ErrorKind::WouldBlock));
    }
    wait_for("the end of all", || wire.open() == 0);
}

#[test]
fn a_wire_refuses_holds_and_delays_until_it_passes_again() {
    let wire = Wire::to(server(b'a'));
    let client = connect(&wire);
    assert_eq!(answers(&client), b'a');

    wire.refuse();
    let refused = TcpStream::connect(("127.0.0.1", wire.port())).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(answers(&client), b'a');
    wire.pass();
    assert_eq!(answers(&connect(&wire)), b'a');

    wire.hold();
    is_silent(&client);
    wire.pass();
    // The answer that was held up comes first.
    assert_eq!((answers(&client), answers(&client)), (b'a', b'a'));

    wire.delay(PAUSE);
    let begun = Instant::now();
    assert_eq!(answers(&connect(&wire)), b'a');
    assert!(begun.elapsed() > 2 * PAUSE);
    drop(wire);
    wait_for("the end of it", || ask(&client).is_err_and(|error| error != ErrorKind::WouldBlock));
}
