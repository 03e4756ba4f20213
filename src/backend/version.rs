//! Which servers are too old.

use std::{fmt, io};

/// The software of a server, with the oldest release that this crate works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Software {
    #[cfg(any(feature = "mysql", test))]
    MariaDb,
    #[cfg(any(feature = "mysql", test))]
    MySql,
    #[cfg(any(feature = "postgres", test))]
    PostgreSql,
}

impl Software {
    /// | | why |
    /// |---|---|
    /// | MariaDB 10.5 | the oldest that has been tried |
    /// | MySQL 8.0 | names of variables; `SHOW REPLICA STATUS` |
    /// | PostgreSQL 14 | `client_connection_check_interval` |
    fn oldest(self) -> ((u32, u32), &'static str) {
        match self {
            #[cfg(any(feature = "mysql", test))]
            Self::MariaDb => ((10, 5), "MariaDB 10.5"),
            #[cfg(any(feature = "mysql", test))]
            Self::MySql => ((8, 0), "MySQL 8.0"),
            #[cfg(any(feature = "postgres", test))]
            Self::PostgreSql => ((14, 0), "PostgreSQL 14"),
        }
    }

    /// Refuses a server whose version is too old. A text that is not a version counts as a new one: other software
    /// speaks these protocols as well.
    pub(super) fn accept(self, version: &str) -> Result<(), sqlx::Error> {
        let mut numbers =
            version.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
        let (Some(major), minor) = (numbers.next(), numbers.next().unwrap_or(0)) else { return Ok(()) };
        let (oldest, needed) = self.oldest();
        if (major, minor) >= oldest {
            return Ok(());
        }
        // Not the fault of a query: every query fails at this server, and may succeed at another one.
        let too_old = TooOld { version: version.to_owned(), needed };
        Err(io::Error::new(io::ErrorKind::Unsupported, too_old).into())
    }
}

#[derive(Debug)]
struct TooOld {
    version: String,
    needed: &'static str,
}

impl fmt::Display for TooOld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server's version {} is too old, {} or newer is needed", self.version, self.needed)
    }
}

impl std::error::Error for TooOld {}

#[cfg(test)]
mod tests {
    use super::Software::*;

    #[test]
    fn what_is_too_old() {
        for (software, version, needed) in [
            (MariaDb, "10.4.34-MariaDB-1:10.4.34+maria~ubu2004-log", Some("10.5")),
            (MariaDb, "5.5.68-MariaDB", Some("10.5")),
            (MariaDb, "10.5.29-MariaDB-0+deb11u1", None),
            (MariaDb, "10.11.19-MariaDB-0+deb12u1", None),
            (MariaDb, "11.8.9-MariaDB-0+deb13u1 from Debian", None),
            (MariaDb, "12.3.1-MariaDB", None),
            (MySql, "5.7.44-log", Some("8.0")),
            (MySql, "8.0.46", None),
            (MySql, "8.0.36-28.1", None),
            (MySql, "8.4.9-google", None),
            (MySql, "9.7.4-2", None),
            (MySql, "", None),
            (MySql, "Proxy", None),
            (PostgreSql, "13.22", Some("14")),
            (PostgreSql, "9.6", Some("14")),
            (PostgreSql, "14.0", None),
            (PostgreSql, "18.6", None),
            (PostgreSql, "19beta1", None),
        ] {
            match (software.accept(version), needed) {
                (Ok(()), None) => {}
                (Err(error), Some(needed)) => {
                    let error = error.to_string();
                    let told =
                        error.contains(version) && error.contains(&format!("{needed} or newer is needed"));
                    assert!(told, "{error}");
                }
                (accepted, _) => panic!("{software:?} {version}: {accepted:?}"),
            }
        }
    }
}
