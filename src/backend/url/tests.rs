use super::*;
use crate::backend::{Access, Settings};

/// The expected outcome for a URL.
enum Told<'a> {
    /// Host, port, user and database.
    LeadsTo(&'a str),
    /// A part of the problem.
    Refused(&'a str),
}

use Told::{LeadsTo, Refused};

const SECRET: &str = "hunter2";
const SEVERAL: &str = "names several servers: `url` is that of the master";
const TORN: &str = "in a user or a password, write `%2F`, `%3F` or `%23`";

fn settings(url: &str) -> Settings {
    Settings {
        url: DatabaseUrl(url.to_owned()),
        connect_to: None,
        min_connections: 0,
        max_connections: 1,
        connect_timeout: std::time::Duration::from_secs(1),
        idle_timeout: None,
        extensions: Vec::new(),
        enforce_read_only: true,
        prepared_statements: true,
        slow_statement: None,
    }
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
#[track_caller]
fn all_are<DB: Driver>(urls: &[(&str, Told<'_>)]) {
    for (url, told) in urls {
        let options = DB::options(&settings(url), Access::Writes);
        match (options, told) {
            (Ok(options), LeadsTo(place)) => {
                let user = DB::user(&options).unwrap_or_default();
                let database = DB::database(&options).unwrap_or_default();
                assert_eq!(format!("{user} at {}/{database}", DB::address(&options)), *place, "{url}");
            }
            (Err(problem), Refused(part)) => {
                assert!(problem.contains(part), "{url}: {problem}");
                assert!(!problem.contains(SECRET), "{url}: {problem}");
            }
            (Ok(options), Refused(part)) => panic!("{url}: {} is not refused: {part}", DB::address(&options)),
            (Err(problem), LeadsTo(_)) => panic!("{url}: {problem}"),
        }
    }
}

#[cfg(feature = "postgres")]
#[test]
fn of_postgresql() {
    all_are::<sqlx::Postgres>(&[
        ("postgres://app:hunter2@db-1/blog", LeadsTo("app at db-1:5432/blog")),
        ("postgresql://app@db-1:5433/blog", LeadsTo("app at db-1:5433/blog")),
        ("postgres://app@db-1", LeadsTo("app at db-1:5432/app")),
        ("postgres://app:p%2Fa%23s%3Fs@db-1/blog", LeadsTo("app at db-1:5432/blog")),
        ("postgres://app:p@ss@db-1/blog", LeadsTo("app at db-1:5432/blog")),
        ("postgres://app:p,ss@db-1/blog", LeadsTo("app at db-1:5432/blog")),
        ("postgres://app@127.0.0.1/blog", LeadsTo("app at 127.0.0.1:5432/blog")),
        ("postgres://app@[::1]/blog", LeadsTo("app at [::1]:5432/blog")),
        ("postgres://app@[2001:db8::7]:5433/blog", LeadsTo("app at [2001:db8::7]:5433/blog")),
        ("postgres://[::1]/blog?user=app", LeadsTo("app at [::1]:5432/blog")),
        ("postgres://app@%2Frun%2Fpostgresql/blog", LeadsTo("app at /run/postgresql:5432/blog")),
        (
            "postgres:///blog?host=/run/postgresql&port=5433&user=app",
            LeadsTo("app at /run/postgresql:5433/blog"),
        ),
        ("postgres:///blog?host=db-1&user=app&password=hunter2", LeadsTo("app at db-1:5432/blog")),
        ("postgres://app@db-1/blog?hostaddr=127.0.0.1", LeadsTo("app at 127.0.0.1:5432/blog")),
        (
            "postgres://app@db-1/blog?sslmode=disable&application_name=me@home",
            LeadsTo("app at db-1:5432/blog"),
        ),
        (
            "postgres://app@db-1/blog?options[search_path]=a&options=-c%20b=c",
            LeadsTo("app at db-1:5432/blog"),
        ),
        ("postgres://app@db-1/blog?options%5Bsearch_path%5D=a", LeadsTo("app at db-1:5432/blog")),
        ("postgres://app@db-1/blog?", LeadsTo("app at db-1:5432/blog")),
        ("postgres://app@db-1,db-2/blog", Refused(SEVERAL)),
        ("postgres://app:hunter2@db-1:5432,db-2:5433/blog", Refused(SEVERAL)),
        ("postgres://db-1:5432,db-2/blog", Refused(SEVERAL)),
        ("postgres://app@db-1,db-2:5433/blog", Refused(SEVERAL)),
        ("postgres:///blog?host=db-1,db-2", Refused(SEVERAL)),
        ("postgres:///blog?host=db-1%2Cdb-2", Refused(SEVERAL)),
        ("postgres:///blog?host=db-1%2cdb-2", Refused(SEVERAL)),
        ("postgres:///blog?host=db-1&port=5432,5433", Refused(SEVERAL)),
        ("postgres://app:hunt/hunter2@db-1/blog", Refused(TORN)),
        ("postgres://app:12/hunter2@db-1/blog", Refused(TORN)),
        ("postgres://app:p@ss/hunter2@db-1/blog", Refused(TORN)),
        ("postgres://app:hunt#hunter2@db-1/blog", Refused(TORN)),
        ("postgres://app:hunt?hunter2@db-1/blog", Refused(TORN)),
        ("postgres://app:12?hunter2@db-1/blog", Refused("a parameter that is unknown")),
        ("postgres://app@db-1/blog#part", Refused(TORN)),
        ("postgres://app@db-1:port/blog", Refused("invalid port number")),
        (
            "host=db-1 dbname=blog password=hunter2",
            Refused("write `postgres://USER:PASSWORD@HOST:PORT/DATABASE`"),
        ),
        ("db-1", Refused("write `postgres://USER:PASSWORD@HOST:PORT/DATABASE`")),
        ("mysql://app:hunter2@db-1/blog", Refused("it must begin with `postgres://` or `postgresql://`")),
        ("postgres://app@db-1/blog?sslmod=require", Refused("`sslmod`: did you mean `sslmode`?")),
        ("postgres://app@db-1/blog?passwd=hunter2", Refused("`passwd`: did you mean `password`?")),
        (
            "postgres://app@db-1/blog?connect_timeout=10",
            Refused("`connect_timeout`, which is a key of the section"),
        ),
        (
            "postgres://app@db-1/blog?target_session_attrs=any",
            Refused("unknown parameter `target_session_attrs`: remove it"),
        ),
        (
            "postgres://app@db-1/blog?sslmode=require&channel_binding=require",
            Refused("asks for TLS by `channel_binding`"),
        ),
        ("postgres://app@db-1/blog?SSLMODE=require", Refused("asks for TLS by `SSLMODE`")),
        ("postgres://app@db-1/blog?user=app&password=tr&hunter", Refused("a parameter that is unknown")),
        ("postgres://app@db-1/blog?hunter2@x", Refused("a parameter that is unknown")),
        ("postgres://app@db-1/blog?sslmode=perhaps", Refused("cannot be read")),
        ("postgres://app@db-1/blog?port=many", Refused("cannot be read")),
    ]);
}

#[cfg(feature = "mysql")]
#[test]
fn of_mysql_and_mariadb() {
    all_are::<sqlx::MySql>(&[
        ("mysql://app:hunter2@db-1/blog", LeadsTo("app at db-1:3306/blog")),
        ("mariadb://app@db-1:3307/blog", LeadsTo("app at db-1:3307/blog")),
        ("mysql://app@[::1]/blog", LeadsTo("app at [::1]:3306/blog")),
        (
            "mysql://app@localhost/blog?socket=/run/mysqld/mysqld.sock",
            LeadsTo("app at /run/mysqld/mysqld.sock/blog"),
        ),
        ("mysql://app:p%23ss@db-1/blog?ssl-mode=DISABLED&charset=utf8mb4", LeadsTo("app at db-1:3306/blog")),
        ("mysql://app@db-1,db-2/blog", Refused(SEVERAL)),
        ("mysql://app@db-1:3306,db-2:3306/blog", Refused(SEVERAL)),
        ("mysql://app:hunt#hunter2@db-1/blog", Refused(TORN)),
        ("mysql://app:hunt/hunter2@db-1/blog", Refused(TORN)),
        ("mysql://app@db-1/blog?sslmod=required", Refused("`sslmod`: did you mean `sslmode`?")),
        ("mysql://app@db-1/blog?passwd=hunter2", Refused("unknown parameter `passwd`")),
        ("mysql://app@db-1/blog?useSSL=true", Refused("asks for TLS by `useSSL`")),
        ("Server=db-1;Uid=app;Pwd=hunter2", Refused("write `mysql://USER:PASSWORD@HOST:PORT/DATABASE`")),
    ]);
}
