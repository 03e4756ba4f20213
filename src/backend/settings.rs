use std::net::IpAddr;
use std::time::Duration;

use super::url::DatabaseUrl;

/// How to connect to one server.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) url: DatabaseUrl,
    /// The address to connect to, in place of the URL's host, where that stands for several servers.
    pub(crate) connect_to: Option<IpAddr>,
    pub(crate) min_connections: u32,
    pub(crate) max_connections: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) extensions: Vec<String>,
    pub(crate) enforce_read_only: bool,
    pub(crate) prepared_statements: bool,
    /// How long a statement takes that the log warns of. `None`: none is.
    pub(crate) slow_statement: Option<Duration>,
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
impl Settings {
    /// The host to connect to, if it differs from the one in the options. The URL puts brackets around an IPv6 address,
    /// and sqlx would look for a host with that name.
    pub(super) fn host_of(&self, host: &str) -> Option<String> {
        let address = || host.strip_prefix('[')?.strip_suffix(']').map(str::to_owned);
        self.connect_to.map(|address| address.to_string()).or_else(address)
    }
}

/// How options use TLS.
#[cfg(any(feature = "mysql", feature = "postgres"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    /// TLS is used where both sides support it.
    Optional,
    /// Nothing is sent without TLS.
    Required,
}

/// Refuses options that ask for TLS without support in this build, or for certificate files that do not exist. sqlx
/// would report both as well, but at each connection.
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(super) fn check_tls(options: &impl sqlx::ConnectOptions, tls: Tls) -> Result<(), String> {
    const KEYS: [&str; 6] = ["sslrootcert", "ssl-ca", "sslcert", "ssl-cert", "sslkey", "ssl-key"];

    let is_there = cfg!(any(feature = "tls-native-tls", feature = "tls-rustls"));
    if tls == Tls::Optional {
        return Ok(());
    } else if !is_there {
        return Err("the URL asks for TLS, which is not compiled in: switch on the feature `tls-rustls` or \
                    `tls-native-tls` of `rocket_replicated` in Cargo.toml"
            .into());
    }
    for (key, value) in options.to_url_lossy().query_pairs() {
        // A value that is not a file is the certificate itself.
        let Some(file) = value.strip_prefix("file: ").filter(|_| KEYS.contains(&&*key)) else { continue };
        if let Err(error) = std::fs::File::open(file) {
            return Err(format!("the file of the URL's `{key}` cannot be read: {error}"));
        }
    }
    Ok(())
}
