use rocket::figment::Figment;
use rocket::figment::providers::{Format, Toml};

use super::*;

#[cfg(feature = "postgres")]
mod checks;
#[cfg(all(feature = "mysql", any(feature = "tls-native-tls", feature = "tls-rustls")))]
mod mysql;
#[cfg(feature = "postgres")]
mod pin;
#[cfg(feature = "postgres")]
mod section;
#[cfg(feature = "postgres")]
mod slaves;
#[cfg(feature = "sqlite")]
mod sqlite;

fn figment(profile: &str, toml: &str) -> Figment {
    Figment::from(rocket::Config::debug_default())
        .merge(Toml::string(toml).nested())
        .select(profile.to_owned())
}

#[cfg(feature = "postgres")]
type Driver = sqlx::Postgres;

#[cfg(feature = "postgres")]
fn read(section: &str) -> Result<Config, String> {
    let toml = format!("[debug.databases.blog]\nurl = \"postgres://app:hunter2@db-1/blog\"\n{section}");
    Config::read::<Driver>(&figment("debug", &toml), "blog").map_err(|error| error.to_string())
}

#[cfg(feature = "postgres")]
#[track_caller]
fn refuses(section: &str, message: &str) {
    let error = read(section).expect_err(section);
    assert_eq!(error, format!("`debug.databases.blog.{message}"), "{section}");
    assert!(!error.contains("hunter2"), "{error}");
}
