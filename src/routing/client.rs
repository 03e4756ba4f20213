//! Identifies a client, as far as possible, and draws a slave for it. The draw is the same each time and in every
//! process.

use std::net::IpAddr;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The client of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// The client's network: an IPv4 address, or an IPv6 /64. Within the latter, a device changes its address by
    /// itself: <https://www.rfc-editor.org/rfc/rfc8981>.
    Known(u64),
    /// The number that was drawn for this request.
    Unknown(u64),
}

/// A seed apart from the servers' numbers, so that the clients of a share are spread over the servers like all clients.
const SHARE: u64 = u64::from_be_bytes(*b"\0\0\0share");

impl Client {
    /// Identifies the client by its address. An IPv4 address, also in IPv6 notation, becomes a number of 32 bits. No
    /// IPv6 network that is in use begins with as many zeros.
    pub(crate) fn of(address: Option<IpAddr>) -> Self {
        match address.map(|address| address.to_canonical()) {
            Some(IpAddr::V4(address)) => Self::Known(address.to_bits().into()),
            Some(IpAddr::V6(address)) => Self::Known((address.to_bits() >> 64) as u64),
            None => Self::Unknown(fastrand::u64(..)),
        }
    }

    /// The number that decides whether a share has this client.
    pub(crate) fn drawn(self) -> u64 {
        match self {
            Self::Known(network) => hash(network, SHARE),
            Self::Unknown(drawn) => drawn,
        }
    }
}

/// Leads a client to one of these servers, each of which has a number of its own and a weight. Each server gets as many
/// clients as its weight says. A client stays with its server as long as that is in the list, even if others come and
/// go (weighted rendezvous hashing: Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005).
pub(crate) fn preferred<S>(network: u64, servers: impl Iterator<Item = (u64, u32, S)>) -> Option<S> {
    let mut nearest: Option<(f64, S)> = None;
    for (number, weight, server) in servers {
        // The middle of one of 2^53 parts, as many as `f64` tells apart: never 0.
        let part = ((hash(network, number) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        let least = nearest.as_ref().map_or(f64::INFINITY, |(distance, _)| *distance);
        // Since -ln(x) is never less than 1 - x, few logarithms are needed, which would take most of the time.
        if (1.0 - part) / f64::from(weight) < least {
            let distance = -part.ln() / f64::from(weight);
            if distance < least {
                nearest = Some((distance, server));
            }
        }
    }
    nearest.map(|(_, server)| server)
}

/// The XXH3 hash, whose results are specified.
fn hash(network: u64, seed: u64) -> u64 {
    xxh3_64_with_seed(&network.to_be_bytes(), seed)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    fn client(address: &str) -> Client {
        Client::of(Some(address.parse().unwrap()))
    }

    fn led_to<'a>(network: u64, servers: &[(&'a str, u32)]) -> &'a str {
        let servers = servers.iter().map(|(name, weight)| (xxh3_64(name.as_bytes()), *weight, *name));
        preferred(network, servers).unwrap()
    }

    /// Networks as they come in practice: from a few ranges, one after the other.
    fn networks() -> impl Iterator<Item = u64> {
        let v4 = (0..5_000).map(|n| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)));
        let v6 = (0..5_000).map(|n| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8_0000_0000 + n) << 64 | 1)));
        v4.chain(v6).map(|address| match Client::of(Some(address)) {
            Client::Known(network) => network,
            Client::Unknown(_) => unreachable!("it has an address"),
        })
    }

    const FOUR: [(&str, u32); 4] = [("db-1", 1), ("db-2", 1), ("db-3", 1), ("db-4", 1)];

    #[test]
    fn a_client_is_known_by_its_network() {
        assert_eq!(client("2001:db8:0:7::1"), client("2001:db8:0:7:abcd:ef01:2345:6789"));
        assert_ne!(client("2001:db8:0:7::1"), client("2001:db8:0:8::1"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_ne!(Client::of(None), Client::of(None));
    }

    #[test]
    fn the_load_of_four_slaves_is_even() {
        let mut load = [0; 4];
        networks().for_each(|network| {
            let name = led_to(network, &FOUR);
            load[FOUR.iter().position(|(other, _)| *other == name).unwrap()] += 1;
        });
        assert_eq!(load.iter().sum::<u32>(), 10_000);
        assert!(load.iter().all(|clients| f64::from(*clients) < 1.2 * 2_500.0), "{load:?}");
    }

    #[test]
    fn a_slave_has_clients_by_its_weight() {
        let heavy =
            networks().filter(|network| led_to(*network, &[("db-1", 3), ("db-2", 1)]) == "db-1").count();
        assert!((7_200..=7_800).contains(&heavy), "{heavy} of 10000");
    }

    #[test]
    fn whoever_comes_or_goes_moves_no_other_client() {
        for network in networks() {
            let (before, after) = (led_to(network, &FOUR), led_to(network, &FOUR[..3]));
            assert!(before == after || before == "db-4", "{before} {after}");
        }
    }

    #[test]
    fn the_clients_of_a_share_are_as_many_as_it_says_and_are_spread() {
        let share = crate::config::ReadShare::of_clients(0.1);
        let of_share: Vec<_> =
            networks().filter(|network| share.has(Client::Known(*network).drawn())).collect();
        assert!((900..=1_100).contains(&of_share.len()), "{} of 10000", of_share.len());
        let first = of_share.iter().filter(|network| led_to(**network, &FOUR) == "db-1").count();
        assert!((180..=320).contains(&first), "{first} of {}", of_share.len());
    }

    /// Processes of different versions lead a client to the same slave.
    #[test]
    fn what_is_drawn_never_changes() {
        let drawn = [client("192.0.2.1").drawn(), client("2001:db8::1").drawn()];
        assert_eq!((drawn, led_to(0xc000_0201, &FOUR)), ([5449543123353870969, 383654283063645458], "db-4"));
    }
}
