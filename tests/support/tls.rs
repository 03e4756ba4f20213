//! Certificates, and servers that show them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use rocket_replicated_testing::server::{output, wait_for};
use rocket_replicated_testing::{Dbms, Server, Servers};

/// A certificate authority, whose key only the test has.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Writes the authority's own certificate to a file in this folder.
    pub fn file(&self, folder: &Path, name: &str) -> PathBuf {
        let file = folder.join(name);
        fs::write(&file, &self.certificate).unwrap();
        file
    }

    /// Makes the server show a certificate for this host name.
    pub fn certify<D: ServesTls>(&self, server: &Server<D>, host: &str) {
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let write = |ending: &str, text: String| {
            let file = server.data().with_extension(ending);
            fs::write(&file, text).unwrap();
            // Servers refuse a key that others can read.
            fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            let owner = fs::metadata(server.folder()).unwrap();
            chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
            file
        };
        D::serve(server, &write("crt", certificate.pem()), &write("key", key.serialize_pem()));
    }
}

pub trait ServesTls: Dbms {
    /// The option that demands a certificate of the URL's host, signed by this authority.
    const VERIFY_FULL: &str;
    /// The option that demands a certificate signed by this authority, of any host.
    const VERIFY_CA: &str;
    const AUTHORITY: &str;
    /// All options that demand TLS.
    const DEMANDING: &[&str];

    fn serve(server: &Server<Self>, certificate: &Path, key: &Path);

    /// Lets the role `app` in by TLS only.
    fn demand(cluster: &Servers<Self>);

    fn url_with(url: &str, mode: &str, authority: &Path) -> String {
        format!("{url}?{mode}&{}={}", Self::AUTHORITY, authority.display())
    }
}

impl ServesTls for rocket_replicated_testing::postgres::Postgres {
    const VERIFY_FULL: &str = "sslmode=verify-full";
    const VERIFY_CA: &str = "sslmode=verify-ca";
    const AUTHORITY: &str = "sslrootcert";
    const DEMANDING: &[&str] = &["sslmode=require", Self::VERIFY_CA, Self::VERIFY_FULL];

    fn serve(server: &Server<Self>, certificate: &Path, key: &Path) {
        for sql in [
            &format!("ALTER SYSTEM SET ssl_cert_file = '{}'", certificate.display()),
            &format!("ALTER SYSTEM SET ssl_key_file = '{}'", key.display()),
            "ALTER SYSTEM SET ssl = on",
            "SELECT pg_reload_conf()",
        ] {
            server.sql(sql);
        }
        wait_for("PostgreSQL with TLS", || server.sql("SHOW ssl") == "on");
    }

    fn demand(cluster: &Servers<Self>) {
        for server in std::iter::once(&cluster.master).chain(&cluster.slaves) {
            let hba = server.data().join("pg_hba.conf");
            let rules = fs::read_to_string(&hba).unwrap();
            fs::write(&hba, format!("hostnossl all app all reject\n{rules}")).unwrap();
            server.sql("SELECT pg_reload_conf()");
            let mut plain = rocket_replicated_testing::postgres::client(server, "psql");
            plain.args(["-c", "SELECT 1", "-d", &format!("{}?sslmode=disable", server.url())]);
            wait_for("rejection of those without TLS", || output(&mut plain).is_err());
        }
    }
}

impl ServesTls for rocket_replicated_testing::mysql::MySql {
    const VERIFY_FULL: &str = "ssl-mode=VERIFY_IDENTITY";
    const VERIFY_CA: &str = "ssl-mode=VERIFY_CA";
    const AUTHORITY: &str = "ssl-ca";
    const DEMANDING: &[&str] = &["ssl-mode=REQUIRED", Self::VERIFY_CA, Self::VERIFY_FULL];

    /// The servers of a cluster share their settings, which are restored after the restart.
    fn serve(server: &Server<Self>, certificate: &Path, key: &Path) {
        let file = server.folder().join("my.cnf");
        let settings = fs::read_to_string(&file).unwrap();
        let tls = format!("ssl_cert = {}\nssl_key = {}\n", certificate.display(), key.display());
        fs::write(&file, format!("{settings}{tls}")).unwrap();
        server.stop();
        server.start();
        fs::write(&file, settings).unwrap();
    }

    fn demand(cluster: &Servers<Self>) {
        cluster.master.sql("ALTER USER app REQUIRE SSL");
        cluster.wait_caught_up();
    }
}
