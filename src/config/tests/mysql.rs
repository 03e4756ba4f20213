use super::*;
use crate::backend::{Access, Engine};

fn read(slave: &str) -> Result<Config, String> {
    let toml = format!("[debug.databases.blog]\nurl = \"mysql://app:hunter2@db-1/blog\"\nslaves = [{slave}]");
    Config::read::<sqlx::MySql>(&figment("debug", &toml), "blog").map_err(|error| error.to_string())
}

#[test]
fn the_name_in_a_certificate_cannot_be_checked_where_addresses_are_connected_to() {
    let url = |mode| format!("url = \"mysql://app:hunter2@readers.internal/blog?ssl-mode={mode}\"");
    for spelling in ["VERIFY_IDENTITY", "verify_identity"] {
        assert_eq!(
            read(&format!("{{ {}, discover = \"dns\" }}", url(spelling))).unwrap_err(),
            "`debug.databases.blog.slaves[0].discover`: with `ssl-mode=VERIFY_IDENTITY`, the driver would look for the \
             addresses in the servers' certificates, not for the name: give each server an entry with a name of its \
             own, or say `ssl-mode=VERIFY_CA`, which does check who signed the certificates"
        );
    }
    assert!(read(&format!("{{ {}, discover = \"dns\" }}", url("VERIFY_CA"))).is_ok());
    assert!(read(&format!("{{ {} }}", url("VERIFY_IDENTITY"))).is_ok());
}

#[test]
fn a_server_that_is_discovered_is_connected_to_by_its_address() {
    let config = read("{ url = \"mysql://app@readers.internal:3307/blog\", discover = \"dns\" }").unwrap();
    for (address, host) in [("10.0.0.2", "10.0.0.2"), ("2001:db8::2", "2001:db8::2")] {
        let at = config.slaves[0].at(address.parse().unwrap());
        let options = <sqlx::MySql as Engine>::options(&at.settings, Access::SlaveReads).unwrap();
        let told = (options.get_host(), options.get_port(), options.get_username());
        assert_eq!(told, (host, 3307, "app"));
    }
}
