//! The servers that URLs lead to.

crate::on_servers! {
    use std::net::Ipv6Addr;

    use rocket::local::asynchronous::Client;
    use rocket::tokio;
    use rocket::tokio::net::{TcpListener, TcpStream};
    use support::rocket_over;

    /// A relay to a port of this machine. Returns the relay's own port.
    async fn way_to(port: u16) -> u16 {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let begins = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
            }
        });
        begins
    }

    #[support::async_test]
    async fn an_address_in_brackets_is_connected_to() {
        let lab = Lab::new();
        let port = way_to(lab.servers().master.port()).await;
        let place = format!("127.0.0.1:{}", lab.servers().master.port());
        let url = lab.master_url().replace(&place, &format!("[::1]:{port}"));
        let rocket = rocket_over(&format!("url = \"{url}\"\n")).attach(Replicated::fairing());
        let client = Client::untracked(rocket).await.unwrap();
        let db = Replicated::fetch(client.rocket()).unwrap().write();
        let one: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&db).await.unwrap();
        assert_eq!(one, 0);
        let said = support::logbook::lines(&["INFO", &format!("connections to [::1]:{port}")]);
        assert!(!said.is_empty());
    }
}

crate::on_postgres! {
    use rocket::local::asynchronous::Client;
    use rocket_replicated::NodeState;
    use rocket_replicated::postgres::Replicated;
    use support::lab::postgres::Lab;
    use support::{eventually, rocket_over};

    /// If the socket were taken for a second master, all writes would be refused.
    #[support::async_test]
    async fn the_masters_own_socket_leads_to_the_master_itself() {
        let lab = Lab::new();
        let master = &lab.servers().master;
        let folder = master.folder().display().to_string().replace('/', "%2F");
        let place = format!("127.0.0.1:{}", master.port());
        let socket = lab.master_url().replace(&place, &format!("{folder}:{}", master.port()));
        let section = format!(
            "url = \"{}\"\nslaves = [{{ url = \"{socket}\", name = \"socket\" }}]\nfollow_promotion = true\n",
            lab.master_url()
        );
        let client = Client::untracked(rocket_over(&section).attach(Replicated::fairing())).await.unwrap();
        let cluster = Replicated::fetch(client.rocket()).unwrap();
        let state = || cluster.status().into_iter().find(|node| node.name == "socket").unwrap().state;
        eventually("its state", async || state() == NodeState::MasterItself).await;
        let insert = sqlx::query("INSERT INTO notes (id, body) VALUES (1, 'note')");
        insert.execute(&cluster.write()).await.unwrap();
    }
}
