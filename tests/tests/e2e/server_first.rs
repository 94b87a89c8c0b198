//! Servers that speak first, and a real one that does not, on ports of which nothing is said.

use std::{net::SocketAddr, process::Command};

use sluice_tests::{
    PATIENCE, Pod, Process, Shop, Span, accept,
    ports::{HTTP, TCP, UNDECLARED},
};

const BANNER: &str = "220 mail.example ESMTP ready\r\n";

#[tokio::test]
async fn a_silent_client_hears_a_server_that_speaks_first() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let name = server.name();
        for (to, target) in [
            (shop.service(name, UNDECLARED), UNDECLARED.target),
            (shop.service(name, TCP), TCP.target),
            // A wrong name is no outage.
            (shop.service(name, HTTP), HTTP.target),
            (SocketAddr::new(server.ip(), UNDECLARED.target), UNDECLARED.target),
            (SocketAddr::new(server.ipv6(), UNDECLARED.target), UNDECLARED.target),
            (SocketAddr::new(server.ip(), 2525), 2525),
        ] {
            let listener = server.listen(target)?;
            let mut client = shop.dial(to).await?;
            let mut app = accept(&listener).await?;
            app.say(BANNER).await?;
            assert_eq!(client.hear("\r\n").await?, BANNER, "{to}");
            // What follows is nobody's business, even where it looks like HTTP.
            let request = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
            client.say(request).await?;
            assert_eq!(app.hear("\r\n\r\n").await?, request, "{to}");
            app.say("221 bye\r\n").await?;
            client.hear("221 bye\r\n").await?;
        }
    }
    Ok(())
}

/// A real redis in `pod`, listening on `port`.
async fn redis(shop: &Shop, pod: &Pod, port: u16) -> anyhow::Result<Process> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "*", "-::*", "--protected-mode", "no"]);
    command.args(["--save", "", "--dir"]).arg(shop.lab.directory());
    let process = pod.spawn("redis", command)?;
    process.output().line(PATIENCE, |line| line.contains("Ready to accept connections")).await?;
    Ok(process)
}

#[tokio::test]
async fn redis_works_through_the_mesh_with_its_own_client() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let _redis = redis(&shop, server, UNDECLARED.target).await?;
        let to = shop.service(server.name(), UNDECLARED);
        let cli = |arguments: &[&str]| {
            let mut command = Command::new("redis-cli");
            command.args(["-h", &to.ip().to_string(), "-p", &to.port().to_string()]);
            command.args(arguments);
            shop.client.run(command)
        };
        assert_eq!(cli(&["PING"])?.success()?, "PONG\n");
        assert_eq!(cli(&["SET", "colour", "blue"])?.success()?, "OK\n");
        assert_eq!(cli(&["GET", "colour"])?.success()?, "blue\n");
        // Redis sees the client's own address.
        let clients = cli(&["CLIENT", "LIST"])?.success()?;
        assert!(clients.contains(&format!(" addr={}:", shop.client.ip())), "{clients}");
    }
    Ok(())
}

#[tokio::test]
async fn a_megabyte_goes_into_redis_and_comes_out_as_it_was() -> anyhow::Result<()> {
    const SIZE: usize = 1 << 20;
    let shop = Shop::open().await?;
    // Every byte value, line ends included, and no period that a buffer size could hide.
    let value: Vec<u8> = (0..SIZE).map(|n| ((n % 251) ^ (n >> 8)) as u8).collect();
    for server in shop.servers() {
        let _redis = redis(&shop, server, UNDECLARED.target).await?;
        let mut client = shop.dial(shop.service(server.name(), UNDECLARED)).await?;
        client.say("*1\r\n$4\r\nPING\r\n").await?;
        assert_eq!(client.hear("\r\n").await?, "+PONG\r\n");
        client.say(format!("*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n${SIZE}\r\n")).await?;
        client.say(&value).await?;
        client.say("\r\n").await?;
        assert_eq!(client.hear("\r\n").await?, "+OK\r\n");
        client.say("*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n*1\r\n$4\r\nQUIT\r\n").await?;
        assert_eq!(client.hear("\r\n").await?, format!("${SIZE}\r\n"));
        assert!(client.exactly(SIZE).await? == value, "redis gave back other bytes");
        assert_eq!(client.rest().await?.0, "\r\n+OK\r\n");
        drop(client);

        let of = |span: &&Span| span.attribute("mesh.destination.principal") == server.principal();
        let spans = shop.receiver.wait_for(PATIENCE, |spans| spans.iter().filter(of).count() == 2);
        for span in spans.await?.iter().filter(of) {
            let bytes = |name| span.attribute(name).parse::<usize>().unwrap();
            assert!(bytes("mesh.connection.sent_bytes") > SIZE, "{span:?}");
            assert!(bytes("mesh.connection.received_bytes") > SIZE, "{span:?}");
        }
    }
    Ok(())
}
