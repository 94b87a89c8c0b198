//! Bytes of connections in metrics: they count as they are carried, not when the connection ends, which
//! may be days later.

use sluice_tests::{
    Agent, Line, Node, Shop, accept, eventually,
    ports::{HTTP, TCP, UNDECLARED},
};

const CHAT: &str = "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\n\
                    Upgrade: websocket\r\n\r\n";
const CONNECT: &str = "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n";

/// What `node`'s agent says, as `reporter`, of the bytes of requests and of responses.
async fn bytes(node: &Node, reporter: &str) -> anyhow::Result<(u64, u64)> {
    let metrics = Agent::metrics(node).await?;
    let sum = |name: &str| -> u64 {
        let name = format!("istio_tcp_{name}_bytes_total{{");
        let of_reporter = format!("reporter=\"{reporter}\"");
        let samples = metrics.lines().filter(|line| line.starts_with(&name));
        let samples = samples.filter(|line| line.contains(&of_reporter));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    Ok((sum("received"), sum("sent")))
}

/// Both sides of a connection, and what they have said of others before.
struct Sides<'a>([(&'a Node, &'static str, (u64, u64)); 2]);

impl<'a> Sides<'a> {
    async fn of(shop: &'a Shop, near: bool) -> anyhow::Result<Self> {
        let server = if near { &shop.a } else { &shop.b };
        let source = bytes(&shop.a, "source").await?;
        let destination = bytes(server, "destination").await?;
        Ok(Self([(&shop.a, "source", source), (server, "destination", destination)]))
    }

    /// Waits until each side has counted exactly so many more.
    async fn say(&self, up: u64, down: u64) -> anyhow::Result<()> {
        for &(node, reporter, before) in &self.0 {
            let what = format!("{reporter}: {up} bytes up and {down} down");
            eventually(&what, || async {
                let now = bytes(node, reporter).await?;
                let more = (now.0 - before.0, now.1 - before.1);
                assert!(more.0 <= up && more.1 <= down, "{what}, but {more:?}");
                Ok((more == (up, down)).then_some(()))
            })
            .await?;
        }
        Ok(())
    }
}

/// Says 10 bytes up and 1,000 down, `times` times, and looks at the metrics after each.
async fn talk(
    client: &mut Line,
    app: &mut Line,
    sides: &Sides<'_>,
    times: u64,
) -> anyhow::Result<()> {
    for n in 1..=times {
        client.say([1; 10]).await?;
        app.exactly(10).await?;
        app.say([2; 1000]).await?;
        client.exactly(1000).await?;
        sides.say(10 * n, 1000 * n).await?;
    }
    Ok(())
}

#[tokio::test]
async fn of_an_opaque_connection_count_while_it_is_open_and_once() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for (near, server) in [(true, &shop.near), (false, &shop.far)] {
        for port in [TCP, UNDECLARED] {
            let sides = Sides::of(&shop, near).await?;
            let listener = server.listen(port.target)?;
            let mut client = shop.dial(shop.service(server.name(), port)).await?;
            client.say([1; 10]).await?;
            let mut app = accept(&listener).await?;
            app.exactly(10).await?;
            sides.say(10, 0).await?;
            app.say([2; 1000]).await?;
            client.exactly(1000).await?;
            sides.say(10, 1000).await?;
            let sides = Sides::of(&shop, near).await?;
            talk(&mut client, &mut app, &sides, 2).await?;
            client.finish().await?;
            app.say("bye").await?;
            drop(app);
            assert_eq!(client.rest().await?, ("bye".to_owned(), None));
            sides.say(20, 2003).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn of_an_upgraded_connection_count_while_it_is_open_and_once() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    for (near, server) in [(true, &shop.near), (false, &shop.far)] {
        for (request, answer) in [
            (
                CHAT,
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            ),
            // A proxy in the mesh.
            (CONNECT, "HTTP/1.1 200 Connection established\r\n\r\n"),
        ] {
            let sides = Sides::of(&shop, near).await?;
            let listener = server.listen(HTTP.target)?;
            let mut client = shop.dial(shop.service(server.name(), HTTP)).await?;
            client.say(request).await?;
            let mut app = accept(&listener).await?;
            app.hear("\r\n\r\n").await?;
            app.say(answer).await?;
            client.hear("\r\n\r\n").await?;
            talk(&mut client, &mut app, &sides, 2).await?;
            client.finish().await?;
            app.say("bye").await?;
            drop(app);
            assert_eq!(client.rest().await?.0, "bye", "{request}");
            sides.say(20, 2003).await?;
        }
    }
    Ok(())
}
