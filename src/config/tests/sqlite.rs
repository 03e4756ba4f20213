use super::*;

fn read(section: &str) -> Result<Config, String> {
    let toml = format!("[debug.databases.blog]\n{section}");
    Config::read::<sqlx::Sqlite>(&figment("debug", &toml), "blog").map_err(|error| error.to_string())
}

#[test]
fn the_example_is_accepted() {
    let config =
        Config::read::<sqlx::Sqlite>(&figment("debug", include_str!("../../../Rocket.toml")), "replicated");
    assert_eq!(config.unwrap().slaves[0].follow, Some(Duration::from_secs(2)));
}

#[test]
fn one_writer_and_a_follower() {
    let config = read(
        "url = \"sqlite://var/Blog.db\"\nmax_connections = 12\nmin_connections = 2\n\
         slaves = [{ url = \"var/slave.db\", follow = 0.5 }]",
    )
    .unwrap();
    assert_eq!(config.master.name, "blog.db");
    assert_eq!((config.master.settings.max_connections, config.master.settings.min_connections), (1, 1));
    assert_eq!(config.master_reads.settings.max_connections, 3);
    let slave = &config.slaves[0];
    assert_eq!((&*slave.server.name, slave.follow), ("slave.db", Some(Duration::from_millis(500))));
    assert_eq!(slave.server.settings.max_connections, 12);
}

#[test]
fn urls_that_cannot_serve() {
    assert_eq!(
        read("url = \"postgres://app:hunter2@db-1/blog\"").unwrap_err(),
        "`debug.databases.blog.url`: the URL is not one of SQLite: it must begin with `sqlite://`"
    );
    for url in [":memory:", "sqlite::memory:", "sqlite://x.db?mode=memory"] {
        assert_eq!(
            read(&format!("url = \"{url}\"")).unwrap_err(),
            "`debug.databases.blog.url`: an in-memory database cannot be shared between pools: name a file"
        );
    }
}

#[test]
fn who_was_promoted_only_postgresql_proves() {
    assert_eq!(
        read("url = \"a.db\"\nfollow_promotion = true").unwrap_err(),
        "`debug.databases.blog.follow_promotion`: SQLite does not prove which server was promoted: remove the key"
    );
}

#[test]
fn a_follower_has_a_period_and_a_file_of_its_own() {
    assert_eq!(
        read("url = \"a.db\"\nslaves = [{ url = \"b.db\", follow = 3 }]").unwrap_err(),
        "`debug.databases.blog.slaves[0].follow`: must be below `max_lag`, which is 3: raise `lag_window`, \
         shorten `check_interval` and `check_timeout`, or say `max_lag = false`"
    );
    assert_eq!(
        read("url = \"a.db\"\nslaves = [{ url = \"b.db\", follow = 0 }]").unwrap_err(),
        "`debug.databases.blog.slaves[0].follow`: expected seconds, from 0.01 to 86400, found 0"
    );
    assert_eq!(
        read("url = \"a.db\"\nslaves = [{ url = \"sqlite:a.db\", name = \"b\", follow = 2 }]").unwrap_err(),
        "`debug.databases.blog.slaves[0].follow`: the slave is the master's own file, which a copy would overwrite"
    );
    assert_eq!(
        read("url = \"a.db\"\nslaves = [{ url = \"src/../a.db\", name = \"b\", follow = 2 }]").unwrap_err(),
        "`debug.databases.blog.slaves[0].follow`: the slave is the master's own file, which a copy would overwrite"
    );
    let same = "{ url = \"b.db\", name = \"b1\" }, { url = \"./b.db\", name = \"b2\", follow = 2 }";
    assert_eq!(
        read(&format!("url = \"a.db\"\nslaves = [{same}]")).unwrap_err(),
        "`debug.databases.blog.slaves[1].follow`: another slave has the same file: give each a file of its own"
    );
}

#[test]
fn a_slave_is_not_the_master() {
    assert_eq!(
        read("url = \"a.db\"\nslaves = [{ url = \"sqlite://./a.db\", name = \"b\" }]").unwrap_err(),
        "`debug.databases.blog.slaves[0]`: leads to the master, as `url` does: name a server that replicates it, \
         or remove the slave"
    );
}

#[test]
fn with_positions_a_follower_may_be_slower_than_the_window() {
    let follow = |keys: &str| {
        read(&format!(
            "url = \"a.db\"\nconsistency = \"position\"\nslaves = [{{ url = \"b.db\", follow = 60 }}]\n{keys}"
        ))
    };
    assert_eq!(
        follow("").unwrap_err(),
        "`debug.databases.blog.slaves[0].follow`: must be below `max_lag`, which is 60: raise `max_lag`, \
         or say `max_lag = false`"
    );
    assert!(follow("max_lag = 90").is_ok());
}

#[test]
fn files_have_no_addresses() {
    assert_eq!(
        read("url = \"a.db\"\nslaves = [{ url = \"b.db\", discover = \"dns\" }]").unwrap_err(),
        "`debug.databases.blog.slaves[0].discover`: SQLite has no hosts: remove the key"
    );
}
