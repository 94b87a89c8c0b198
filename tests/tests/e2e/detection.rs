//! What a connection is taken for, where its port says nothing, something wrong, or two things.

use std::{net::SocketAddr, time::Duration};

use sluice_tests::{
    Agent, Port, Service, Shop, accept,
    ports::{HTTP, UNDECLARED},
};
use tokio::time::sleep;

/// How many connections the client's agent has carried as opaque although something said that they
/// are HTTP.
async fn contradictions(shop: &Shop, reason: &str) -> anyhow::Result<f64> {
    let name = format!("sluice_connections_not_http_total{{reason=\"{reason}\"}} ");
    let metrics = Agent::metrics(&shop.a).await?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(value.unwrap_or_else(|| panic!("no {name}in {metrics}")).parse()?)
}

#[tokio::test]
async fn tls_and_other_protocols_pass_where_http_is_declared_and_are_counted() -> anyhow::Result<()>
{
    let shop = Shop::open().await?;
    for server in shop.servers() {
        for (reason, hello) in [
            // The beginning of a ClientHello, which is what nobody may look behind.
            ("tls", "\u{16}\u{3}\u{1}\u{0}\u{5}\u{1}\u{0}\u{0}\u{1}\u{0}"),
            ("not_http", "*1\r\n$4\r\nPING\r\n"),
            ("not_http", "DESCRIBE rtsp://media/film RTSP/1.0\r\n\r\n"),
            ("not_http", "SOURCE /radio HTTP/1.0\r\n\r\n"),
        ] {
            let before = contradictions(&shop, reason).await?;
            let listener = server.listen(HTTP.target)?;
            let mut client = shop.dial(shop.service(server.name(), HTTP)).await?;
            client.say(hello).await?;
            let mut app = accept(&listener).await?;
            assert_eq!(app.hear(hello).await?, hello);
            app.say("\u{16}hello\n").await?;
            client.hear("\u{16}hello\n").await?;
            client.finish().await?;
            assert_eq!(app.rest().await?, (String::new(), None), "{hello:?}");
            assert_eq!(contradictions(&shop, reason).await?, before + 1.0, "{hello:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_says_nothing_for_a_while_is_still_asked_for_its_request()
-> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for server in shop.servers() {
        let listener = server.listen(HTTP.target)?;
        let mut client = shop.dial(shop.service(server.name(), HTTP)).await?;
        // So long that its server is dialled, which may be the one to speak first.
        let mut app = accept(&listener).await?;
        client.say("GET /late HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
        let asked = app.hear("\r\n\r\n").await?;
        assert!(asked.starts_with("GET /late HTTP/1.1\r\n"), "{asked}");
        app.say("HTTP/1.1 204 No Content\r\n\r\n").await?;
        client.hear("HTTP/1.1 204 No Content\r\n").await?;
    }
    let mut silent = shop.dial(shop.service("empty", HTTP)).await?;
    // Until it was found out that there is no server.
    sleep(Duration::from_millis(500)).await;
    silent.say("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
    silent.hear("HTTP/1.1 503 Service Unavailable\r\n").await?;
    Ok(())
}

#[tokio::test]
async fn a_pause_anywhere_in_a_request_line_hides_no_request() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for (n, server) in shop.servers().into_iter().enumerate() {
        for (begin, rest) in [("G", "ET "), ("GET ", "")] {
            let path = format!("/paused/{n}/{}", begin.len());
            let listener = server.listen(UNDECLARED.target)?;
            let mut client = shop.dial(shop.service(server.name(), UNDECLARED)).await?;
            client.say(begin).await?;
            // Longer than any other bytes are held back for.
            sleep(Duration::from_millis(400)).await;
            client.say(format!("{rest}{path} HTTP/1.1\r\nHost: shop\r\n\r\n")).await?;
            let mut app = accept(&listener).await?;
            let asked = app.hear("\r\n\r\n").await?;
            assert!(asked.contains("traceparent"), "not taken for HTTP: {asked}");
            app.say("HTTP/1.1 204 No Content\r\n\r\n").await?;
            client.hear("HTTP/1.1 204 No Content\r\n").await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_port_of_which_services_say_different_things_carries_what_comes() -> anyhow::Result<()> {
    let shop = Shop::without_agents()?;
    let target = 5050;
    for (n, server) in (20..).zip(shop.servers()) {
        for (ip, port) in [(n, "http"), (n + 10, "tcp")] {
            shop.mesh.service(&Service {
                name: &format!("{}-{port}", server.name()),
                namespace: "default",
                ips: vec![[10, 96, 0, ip].into()],
                ports: vec![Port { name: port, port: target, target }],
                endpoints: vec![server],
            })?;
        }
    }
    let shop = shop.with_agents().await?;
    for (n, server) in (20..).zip(shop.servers()) {
        let listener = server.listen(target)?;
        let (http, tcp) = ([10, 96, 0, n], [10, 96, 0, n + 10]);
        for to in [SocketAddr::from((tcp, target)), (server.ip(), target).into()] {
            let mut client = shop.dial(to).await?;
            client.say("\u{1}no HTTP\n").await?;
            let mut app = accept(&listener).await?;
            app.hear("\u{1}no HTTP\n").await?;
            app.say("\u{2}\n").await?;
            client.hear("\u{2}\n").await?;
        }
        for to in [SocketAddr::from((http, target)), (server.ip(), target).into()] {
            let mut client = shop.dial(to).await?;
            client.say("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
            let mut app = accept(&listener).await?;
            assert!(app.hear("\r\n\r\n").await?.contains("traceparent"), "{to}");
            app.say("HTTP/1.1 204 No Content\r\n\r\n").await?;
            client.hear("HTTP/1.1 204 No Content\r\n").await?;
        }
    }
    Ok(())
}
