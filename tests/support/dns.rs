//! A name server, and a resolver that asks it. The machine's own resolver asks only servers that a test cannot run
//! without privileges.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rocket::futures::future::BoxFuture;
use rocket::tokio;
use rocket_replicated::internals::{Resolve, Resolver};

/// The answer to a query.
#[derive(Clone, Debug)]
pub enum Answer {
    Addresses(Vec<Ipv4Addr>),
    Refused,
    Silence,
}

/// A name server that serves for as long as its test process lives.
pub struct Dns {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    queries: Arc<AtomicUsize>,
}

impl Dns {
    /// Starts a name server. Every name has these addresses of the loopback range, given by their last numbers.
    pub fn start(addresses: &[u8]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let dns = Self {
            address: socket.local_addr().unwrap(),
            answer: Arc::new(Mutex::new(addresses_of(addresses))),
            queries: Arc::default(),
        };
        let (answer, queries) = (dns.answer.clone(), dns.queries.clone());
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let answer = answer.lock().unwrap().clone();
                if let Some(reply) = reply(&query, answer) {
                    socket.send_to(&reply.to_vec().unwrap(), client).unwrap();
                }
                queries.fetch_add(1, Ordering::SeqCst);
            }
        });
        dns
    }

    pub fn set(&self, addresses: &[u8]) {
        self.answer(addresses_of(addresses));
    }

    pub fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// The number of queries so far.
    pub fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }

    pub fn resolver(&self) -> Resolver {
        Resolver(Arc::new(Client(self.address)))
    }
}

pub fn loopback(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

fn addresses_of(addresses: &[u8]) -> Answer {
    Answer::Addresses(addresses.iter().copied().map(loopback).collect())
}

fn reply(query: &Message, answer: Answer) -> Option<Message> {
    let (id, question) = (query.metadata.id, query.queries[0].clone());
    let mut reply = match answer {
        Answer::Silence => return None,
        Answer::Refused => Message::error_msg(id, OpCode::Query, ResponseCode::ServFail),
        Answer::Addresses(addresses) => {
            let mut reply = Message::new(id, MessageType::Response, OpCode::Query);
            let record = |address| Record::from_rdata(question.name().clone(), 0, RData::A(address));
            reply.add_answers(addresses.into_iter().map(Into::into).map(record));
            reply
        }
    };
    reply.add_query(question);
    Some(reply)
}

struct Client(SocketAddr);

impl Resolve for Client {
    fn addresses(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let (server, host) = (self.0, host.to_owned());
        Box::pin(async move {
            let mut query = Message::query();
            query.add_query(Query::query(Name::from_str(&host).unwrap(), RecordType::A));
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
            socket.send_to(&query.to_vec().unwrap(), server).await?;
            let mut buffer = [0; 512];
            // The patience of most systems' resolvers, which ask once more after five seconds.
            let received = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await??;
            let reply = Message::from_vec(&buffer[..received]).map_err(io::Error::other)?;
            match reply.metadata.response_code {
                ResponseCode::NoError => {
                    Ok(reply.answers.iter().filter_map(|record| record.data.ip_addr()).collect())
                }
                code => Err(io::Error::other(code.to_string())),
            }
        })
    }
}
