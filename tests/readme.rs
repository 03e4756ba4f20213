//! What the README says of configuration is what the crate understands.

use std::collections::BTreeSet;

use rocket::figment::Figment;
use rocket::figment::providers::{Format, Toml};
use rocket::local::blocking::Client;
use rocket_replicated::{postgres, sqlite};

const README: &str = include_str!("../README.md");
const EXAMPLE: &str = include_str!("../Rocket.toml");

/// The fenced blocks of a language.
fn snippets(language: &str) -> Vec<&'static str> {
    let blocks = README.split("\n```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect()
}

fn launches(toml: &str, attach: impl FnOnce(rocket::Rocket<rocket::Build>) -> rocket::Rocket<rocket::Build>) {
    support::logbook::open();
    let folder = tempfile::tempdir().unwrap();
    // The files of the example are named relative to the working directory.
    let toml = toml.replace("sqlite://", &format!("sqlite://{}/", folder.path().display()));
    let authority = folder.path().join("authority.pem");
    std::fs::write(&authority, "").unwrap();
    let toml = toml.replace("/etc/ssl/rds/global-bundle.pem", authority.to_str().unwrap());
    let figment =
        Figment::from(rocket::Config::debug_default()).merge(Toml::string(&toml).nested()).select("debug");
    Client::untracked(attach(rocket::custom(figment))).unwrap_or_else(|error| panic!("{toml}: {error}"));
}

#[test]
fn its_sections_launch() {
    let sections: Vec<_> = snippets("toml").into_iter().filter(|toml| toml.contains(".databases.")).collect();
    assert_eq!(sections.len(), 7);
    let has_tls = cfg!(any(feature = "tls-native-tls", feature = "tls-rustls"));
    for section in sections.into_iter().filter(|section| has_tls || !section.contains("sslmode=")) {
        match section.contains("sqlite://") {
            true => launches(section, |rocket| rocket.attach(sqlite::Replicated::fairing())),
            false => launches(section, |rocket| rocket.attach(postgres::Replicated::fairing())),
        }
    }
    launches(EXAMPLE, |rocket| rocket.attach(sqlite::Replicated::fairing()));
}

#[test]
fn its_dependencies_name_this_version() {
    let dependencies: Vec<_> =
        snippets("toml").into_iter().filter(|toml| toml.contains("[dependencies]")).collect();
    let [dependencies] = dependencies[..] else { panic!("{dependencies:?}") };
    let [major, minor] = [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR")];
    let line = format!("rocket_replicated = {{ version = \"{major}.{minor}\"");
    assert!(dependencies.contains(&line), "{line}");
    let table: toml::Table = dependencies.parse().unwrap();
    assert!(table["dependencies"]["sqlx"]["version"].as_str() == Some("0.9"));
}

#[test]
fn its_table_has_every_key() {
    let table = README.split("## Configuration").nth(1).unwrap().split("\n## ").next().unwrap();
    let keys: BTreeSet<_> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    // An unknown key is refused with the list of all keys.
    let figment = Figment::from(rocket::Config::debug_default())
        .merge(("databases.replicated", rocket::figment::value::Map::from([("zzzzzzzzzz", 1)])));
    support::logbook::open();
    let error =
        Client::untracked(rocket::custom(figment).attach(postgres::Replicated::fairing())).unwrap_err();
    assert!(matches!(error.kind(), rocket::error::ErrorKind::FailedFairings(_)));
    let lines = support::logbook::lines(&["zzzzzzzzzz", "the keys here are"]);
    let known = lines[0].split("the keys here are ").nth(1).unwrap();
    let known: BTreeSet<_> = known.split(", ").map(|key| key.trim_matches('`')).collect();
    let of_slaves = BTreeSet::from(["discover", "follow", "logical", "write_url"]);
    assert_eq!(keys, known.union(&of_slaves).copied().collect());
}

/// Without the ways in which it is broken into lines.
fn words() -> String {
    README.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn coming_over_takes_as_many_lines_as_it_says() {
    let folder = support::program::repository().join("examples/coming_over");
    let [before, after] = ["before", "after"].map(|side| folder.join(side).join("src/main.rs"));
    let diff = std::process::Command::new("diff").args([&before, &after]).output().unwrap();
    let diff = String::from_utf8(diff.stdout).unwrap();
    let changed = diff.lines().filter(|line| line.starts_with('>')).count();
    let all = std::fs::read_to_string(before).unwrap().lines().count();
    let says = format!("{changed} lines of {all} change");
    assert!(words().contains(&says), "{says}");
}

#[test]
fn it_has_the_messages_of_the_compiler() {
    let sources = [include_str!("../src/backend/mod.rs"), include_str!("../src/web/guards.rs")].concat();
    for message in ["is not a pool that rocket_replicated can open", "is not a driver of rocket_replicated"] {
        assert!(sources.contains(message) && README.contains(message), "{message}");
    }
    assert!(
        sources.contains("Coming from rocket_db_pools") && README.contains("## Coming from rocket_db_pools")
    );
}

#[test]
fn the_commands_it_names_exist() {
    let commands = snippets("sh").join("\n");
    assert!(commands.contains("cargo run -p guestbook") && commands.contains("./scripts/test"));
    let root = support::program::repository();
    assert!(root.join("scripts/test").is_file() && root.join("examples/guestbook/Cargo.toml").is_file());
}
