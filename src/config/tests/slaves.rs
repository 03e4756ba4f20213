use super::*;

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
        "postgres://other@DB-1:5432/blog?sslmode=disable",
        "postgres://blog@db-1",
        "postgresql:///blog?host=db-1",
    ] {
        refuses(
            &format!("slaves = [{{ url = \"{url}\", name = \"copy\" }}]"),
            &format!("slaves[0]`: leads to the master, as `url` {PROBLEM}"),
        );
    }
    refuses(
        "slaves = [\"postgres://db-2/blog\", \"postgres://db-1/blog\"]",
        &format!("slaves[1]`: leads to the master, as `url` {PROBLEM}"),
    );
    refuses(
        "read_url = \"postgres://reader@db-1:6432/blog\"\nslaves = [\"postgres://db-1:6432/blog\"]",
        &format!("slaves[0]`: leads to the master, as `read_url` {PROBLEM}"),
    );
    // A pooler tells the servers behind it apart by the name of the database.
    for url in ["postgres://db-1/blog_copy", "postgres://db-1:5433/blog", "postgres://db-1.example.org/blog"]
    {
        assert!(read(&format!("slaves = [{{ url = \"{url}\", name = \"copy\" }}]")).is_ok(), "{url}");
    }
    let twice = "[{ url = \"postgres://db-2/blog\", name = \"a\" }, { url = \"postgres://db-2/blog\", name = \"b\" }]";
    assert!(read(&format!("slaves = {twice}")).is_ok());
}
