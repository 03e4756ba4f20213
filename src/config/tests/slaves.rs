use super::*;
use crate::backend::Access;

#[test]
fn slaves_inherit_and_override() {
    let config = read(
        "max_connections = 10\nmin_connections = 3\nidle_timeout = 60\nprepared_statements = false\n\
         slaves = [\"postgres://db-2/blog\", \
                   { url = \"postgres://db-3/blog\", name = \"big\", weight = 3, max_connections = 20, \
                     min_connections = 1, prepared_statements = true, enforce_read_only = false }]",
    )
    .unwrap();
    let [small, big] = &config.slaves[..] else { panic!("{config:?}") };
    assert_eq!((&*small.server.name, small.weight), ("db-2", 1));
    assert_eq!((&*big.server.name, big.weight), ("big", 3));
    let settings = [&small.server.settings, &big.server.settings].map(|settings| {
        let Settings { max_connections, min_connections, prepared_statements, enforce_read_only, .. } =
            settings;
        (*max_connections, *min_connections, *prepared_statements, *enforce_read_only)
    });
    assert_eq!(settings, [(10, 0, false, true), (20, 1, true, false)]);
    assert_eq!(big.server.settings.idle_timeout, Some(Duration::from_secs(60)));
}

#[test]
fn slaves_are_ranked_by_zone_and_weight() {
    use crate::config::Rank::{Far, Near, Spare};

    let ranks = |zone: &str| {
        let config = read(&format!(
            "{zone}\nslaves = [{{ url = \"postgres://db-2/blog\", zone = \"a\" }}, \
             {{ url = \"postgres://db-3/blog\", zone = \"b\" }}, \"postgres://db-4/blog\", \
             {{ url = \"postgres://db-5/blog\", zone = \"a\", weight = 0 }}]"
        ))
        .unwrap();
        config.slaves.iter().map(|slave| config.rank(slave)).collect::<Vec<_>>()
    };
    assert_eq!(ranks("zone = \"a\""), [Near, Far, Far, Spare]);
    assert_eq!(ranks("zone = \"c\""), [Far, Far, Far, Spare]);
    assert_eq!(ranks(""), [Near, Near, Near, Spare]);
    refuses("zone = \"\"", "zone`: expected a name, as in `\"eu-central-1a\"`");
}

#[test]
fn nodes_are_named_by_host_and_by_port_where_they_share_it() {
    let names = |section: &str| -> Vec<String> {
        let config = read(section).unwrap();
        std::iter::once(config.master.name)
            .chain(config.slaves.into_iter().map(|slave| slave.server.name))
            .collect()
    };
    assert_eq!(names("slaves = [\"postgres://db-2/blog\"]"), ["db-1", "db-2"]);
    assert_eq!(
        names("slaves = [\"postgres://DB-2:1/blog\", \"postgres://db-2:2/blog\", \"postgres://[::1]/blog\"]"),
        ["db-1", "db-2-1", "db-2-2", "1"],
    );
    refuses(
        "slaves = [\"postgres://db-2/blog\", \"postgres://db-2/blog\"]",
        "slaves[1]`: a second node named `db-2-5432`: \
         name it, as in `{ url = …, name = \"db-2-5432-2\" }`",
    );
}

#[test]
fn servers_on_sockets_of_one_folder_differ_by_their_port() {
    let config = read(
        "read_url = \"postgres:///blog?host=/run/postgresql&port=5434\"\n\
         slaves = [\"postgres:///blog?host=/run/postgresql&port=5432\", \
                   \"postgres:///blog?host=/run/postgresql&port=5433\"]",
    )
    .unwrap();
    let slaves = config.slaves.iter().map(|SlaveConfig { server, .. }| (&*server.name, server.address.port));
    assert_eq!(
        slaves.collect::<Vec<_>>(),
        [("postgresql-5432", Some(5432)), ("postgresql-5433", Some(5433))]
    );
    assert_ne!(config.slaves[0].server.address, config.slaves[1].server.address);
    refuses(
        "slaves = [\"postgres:///a?host=/run/postgresql\", \"postgres:///b?host=/run/postgresql\"]",
        "slaves[1]`: a second node named `postgresql-5432`: \
         name it, as in `{ url = …, name = \"postgresql-5432-2\" }`",
    );
}

#[test]
fn a_slave_is_not_the_master() {
    const PROBLEM: &str = "does: name a server that replicates it, or remove the slave";

    for url in [
        "postgres://app:hunter2@db-1/blog",
        "postgres://app@DB-1:5432/blog?sslmode=disable",
        "postgresql:///blog?host=db-1&user=app",
    ] {
        refuses(
            &format!("slaves = [{{ url = \"{url}\", name = \"copy\" }}]"),
            &format!("slaves[0]`: leads to the master, as `url` {PROBLEM}"),
        );
    }
    refuses(
        "slaves = [\"postgres://db-2/blog\", \"postgres://app@db-1/blog\"]",
        &format!("slaves[1]`: leads to the master, as `url` {PROBLEM}"),
    );
    refuses(
        "read_url = \"postgres://reader@db-1:6432/blog\"\nslaves = [\"postgres://reader@db-1:6432/blog\"]",
        &format!("slaves[0]`: leads to the master, as `read_url` {PROBLEM}"),
    );
    // A proxy selects the server behind it by the name of the database, or by the user.
    for url in [
        "postgres://app%7Creplica:hunter2@db-1/blog",
        "postgres://app@db-1/blog_copy",
        "postgres://app@db-1:5433/blog",
        "postgres://app@db-1.example.org/blog",
    ] {
        assert!(read(&format!("slaves = [{{ url = \"{url}\", name = \"copy\" }}]")).is_ok(), "{url}");
    }
    let twice = "[{ url = \"postgres://db-2/blog\", name = \"a\" }, { url = \"postgres://db-2/blog\", name = \"b\" }]";
    assert!(read(&format!("slaves = {twice}")).is_ok());
}

#[test]
fn the_addresses_of_a_name_are_servers_named_after_it() {
    let discover =
        |url: &str, keys: &str| format!("slaves = [{{ url = \"{url}\", discover = \"dns\"{keys} }}]");
    let config = read(&discover("postgres://app@Readers.internal/blog", ", weight = 3")).unwrap();
    let [entry] = &config.slaves[..] else { panic!("{config:?}") };
    assert_eq!((entry.discover, entry.weight), (Some(Discover::Dns), 3));
    let names = ["10.0.0.2", "2001:db8::2"].map(|address| entry.at(address.parse().unwrap()).name);
    assert_eq!(names, ["readers.internal-10.0.0.2", "readers.internal-2001-db8--2"]);
    let at = entry.at("10.0.0.2".parse().unwrap());
    let options = <Driver as crate::backend::Engine>::options(&at.settings, Access::SlaveReads).unwrap();
    assert_eq!((options.get_host(), options.get_port(), options.get_username()), ("10.0.0.2", 5432, "app"));
    assert_eq!(at.address.to_string(), "10.0.0.2:5432");
    let config = read(&discover("postgres://readers/blog", ", name = \"r\"")).unwrap();
    assert_eq!(config.slaves[0].at("10.0.0.2".parse().unwrap()).name, "r-10.0.0.2");

    let no_name =
        "slaves[0].discover`: the host of `url` is no name that could have several addresses: remove the key";
    for url in ["postgres://10.0.0.2/blog", "postgres://[::1]/blog", "postgres:///blog?host=/run/postgresql"]
    {
        refuses(&discover(url, ""), no_name);
    }
    refuses(
        "slaves = [{ url = \"postgres://readers/blog\", discover = \"srv\" }]",
        "slaves[0].discover`: expected `\"dns\"`, found `\"srv\"`",
    );
}

#[test]
fn the_name_in_a_certificate_cannot_be_checked_where_addresses_are_connected_to() {
    let url = |mode| format!("postgres://app:hunter2@readers.internal/blog?sslmode={mode}");
    let slave = |mode| format!("slaves = [{{ url = \"{}\", discover = \"dns\" }}]", url(mode));
    refuses(
        &slave("verify-full"),
        "slaves[0].discover`: with `sslmode=verify-full`, the driver would look for the addresses in the servers' \
         certificates, not for the name: give each server an entry with a name of its own, or say \
         `sslmode=verify-ca`, which does check who signed the certificates",
    );
    assert!(read(&slave("verify-ca")).is_ok());
    assert!(read(&format!("slaves = [\"{}\"]", url("verify-full"))).is_ok());
}

#[test]
fn who_writes_to_a_promoted_slave_is_said() {
    let slaves = |slave: &str, keys: &str| format!("{keys}slaves = [{slave}]");
    let reader = "\"postgres://reader@db-2/blog\"";
    let both = "{ url = \"postgres://reader@db-2/blog\", write_url = \"postgres://app@db-2/blog\" }";
    read(&slaves(reader, "")).unwrap();
    let config = read(&slaves(both, "follow_promotion = true\n")).unwrap();
    assert!(config.slaves[0].write_url.is_some());
    read(&slaves("\"postgres://app@db-2/blog\"", "follow_promotion = true\n")).unwrap();
    let logical = reader.replace("\"postgres", "{ logical = true, url = \"postgres") + " }";
    read(&slaves(&logical, "follow_promotion = true\n")).unwrap();
    for (section, problem) in [
        (
            slaves(reader, "follow_promotion = true\n"),
            "it would be written to as `reader`, and not as `app`: say `{ url",
        ),
        (slaves(both, ""), "write_url`: needs `follow_promotion = true`"),
        (
            slaves(&both.replace("app@db-2", "app@db-1"), "follow_promotion = true\n"),
            "write_url`: leads to another server than this slave's `url`",
        ),
        (
            slaves(
                &both.replace(
                    "app@db-2/blog\" }",
                    "app@db-2/blog?sslmode=verify-full\", discover = \"dns\" }",
                ),
                "follow_promotion = true\n",
            ),
            "discover`: with `sslmode=verify-full`",
        ),
        (
            slaves(
                "{ url = \"postgres://app@db-2/blog\", write_url = \"mysql://app@db-2/blog\" }",
                "follow_promotion = true\n",
            ),
            "write_url`: the URL is not one of PostgreSQL",
        ),
    ] {
        let error = read(&section).unwrap_err();
        assert!(error.contains(problem), "{error}");
    }
}
