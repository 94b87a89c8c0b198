//! What the agent itself cuts: each connection and request ends in one span, which says why, on both
//! sides where both are on the node, and metrics have as many closed as opened.

use std::{collections::BTreeMap, net::SocketAddr};

use nix::sys::signal::Signal;
use sluice_tests::{
    Agent, AgentOptions, Kind, Line, Mesh, Node, PATIENCE, Pod, Protocol, Shop, Span, accept,
    eventually,
    ports::{HTTP, TCP},
};
use tokio::net::TcpListener;

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";

/// One of each kind under way between a client and a server; kept open.
struct UnderWay {
    _lines: Vec<Line>,
}

impl UnderWay {
    /// An opaque connection.
    async fn opaque(&mut self, client: Line, listener: &TcpListener) -> anyhow::Result<()> {
        let mut client = client;
        client.say("opaque\n").await?;
        let mut app = accept(listener).await?;
        app.hear("opaque\n").await?;
        self._lines.extend([client, app]);
        Ok(())
    }

    /// A request whose server has `said` so much so far.
    async fn request(
        &mut self,
        mut client: Line,
        listener: &TcpListener,
        head: &str,
        said: &str,
    ) -> anyhow::Result<()> {
        client.say(format!("{head}Host: shop\r\n\r\n")).await?;
        let mut app = accept(listener).await?;
        app.hear("\r\n\r\n").await?;
        app.say(said).await?;
        if !said.is_empty() {
            client.hear("abc").await?;
        }
        self._lines.extend([client, app]);
        Ok(())
    }

    /// Of `dial` to a port that is opaque and one that is HTTP.
    async fn start(
        dial: impl AsyncFn(u16) -> anyhow::Result<Line>,
        [tcp, http]: [u16; 2],
        [opaque, server]: [&TcpListener; 2],
    ) -> anyhow::Result<Self> {
        let mut this = Self { _lines: Vec::new() };
        this.opaque(dial(tcp).await?, opaque).await?;
        for (head, said) in [
            ("GET /waiting HTTP/1.1\r\n", ""),
            ("GET /half HTTP/1.1\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
            (
                &format!("GET /upgraded HTTP/1.1\r\n{UPGRADE}"),
                &format!("HTTP/1.1 101 Switching Protocols\r\n{UPGRADE}\r\nabc"),
            ),
        ] {
            this.request(dial(http).await?, server, head, said).await?;
        }
        Ok(this)
    }
}

/// How each of one side's spans ended: those of requests by path, of connections by what they are.
fn endings(spans: &[Span], kind: Kind) -> BTreeMap<String, Vec<String>> {
    let mut endings: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for span in spans.iter().filter(|span| span.is_agents() && span.kind == kind) {
        let url = [span.attribute("url.path"), span.attribute("url.full")].concat();
        let path = url.rsplit_once('/').map_or("", |(_, path)| path);
        let what = match path {
            "" if span.links.is_empty() => "opaque",
            "" => "websocket",
            path => path,
        };
        endings.entry(what.to_owned()).or_default().push(span.attribute("error.type").to_owned());
    }
    endings
}

/// What ends with `why`, once each. The request that was upgraded had ended in order.
fn all(why: &str) -> BTreeMap<String, Vec<String>> {
    let ended = |what: &str, why: &str| (what.to_owned(), vec![why.to_owned()]);
    [
        ended("opaque", why),
        ended("waiting", why),
        ended("half", why),
        ended("upgraded", ""),
        ended("websocket", why),
    ]
    .into()
}

async fn expect(
    receiver: &sluice_tests::OtlpReceiver,
    kind: Kind,
    why: &str,
) -> anyhow::Result<()> {
    let spans = receiver.wait_for(PATIENCE, |spans| {
        let of = |span: &&Span| span.is_agents() && span.kind == kind;
        spans.iter().filter(of).count() >= 5
    });
    assert_eq!(endings(&spans.await?, kind), all(why), "{kind:?}");
    Ok(())
}

/// As many connections closed as opened, in metrics of `node`.
async fn none_is_open(node: &Node) -> anyhow::Result<()> {
    eventually("all connections are closed", || async {
        let metrics = Agent::metrics(node).await?;
        let sum = |name: &str| -> f64 {
            let samples = metrics.lines().filter(|line| line.starts_with(name));
            samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let [opened, closed] =
            ["opened", "closed"].map(|what| sum(&format!("istio_tcp_connections_{what}_total{{")));
        Ok((opened > 0.0 && opened == closed).then_some(()))
    })
    .await
}

async fn under_way(shop: &Shop, server: &Pod) -> anyhow::Result<UnderWay> {
    let (opaque, http) = (server.listen(TCP.target)?, server.listen(HTTP.target)?);
    let dial = async |port| {
        let port = if port == TCP.port { TCP } else { HTTP };
        shop.dial(shop.service(server.name(), port)).await
    };
    UnderWay::start(dial, [TCP.port, HTTP.port], [&opaque, &http]).await
}

#[tokio::test]
async fn by_the_end_of_a_drain() -> anyhow::Result<()> {
    let shop = Shop::without_agents()?;
    let options = AgentOptions {
        otlp: Some((&shop.receiver, Protocol::Grpc)),
        flags: vec!["--drain-timeout".to_owned(), "100ms".to_owned()],
        // No span leaves before the agent ends.
        environment: vec![("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "600000".to_owned())],
        ..AgentOptions::default()
    };
    let mut agent = Agent::start(&shop.a, &shop.mesh, options).await?;
    let _under_way = under_way(&shop, &shop.near).await?;
    agent.process().signal(Signal::SIGTERM)?;
    agent.process_mut().exit(PATIENCE).await?;
    expect(&shop.receiver, Kind::Client, "drain_timeout").await?;
    expect(&shop.receiver, Kind::Server, "drain_timeout").await
}

#[tokio::test]
async fn by_the_end_of_a_drain_at_the_servers_node() -> anyhow::Result<()> {
    let shop = Shop::without_agents()?;
    let options = |flags: &[&str]| AgentOptions {
        otlp: Some((&shop.receiver, Protocol::Grpc)),
        flags: flags.iter().map(ToString::to_string).collect(),
        environment: vec![("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "20".to_owned())],
        ..AgentOptions::default()
    };
    let _a = Agent::start(&shop.a, &shop.mesh, options(&[])).await?;
    let mut b = Agent::start(&shop.b, &shop.mesh, options(&["--drain-timeout", "100ms"])).await?;
    let _under_way = under_way(&shop, &shop.far).await?;
    b.process().signal(Signal::SIGTERM)?;
    b.process_mut().exit(PATIENCE).await?;
    // What is tunnelled has tasks of its own, which the end waits for as well.
    expect(&shop.receiver, Kind::Server, "drain_timeout").await?;
    expect(&shop.receiver, Kind::Client, "reset_remote").await?;
    none_is_open(&shop.a).await
}

#[tokio::test]
async fn by_a_client_that_leaves_the_mesh() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    let _under_way = under_way(&shop, &shop.near).await?;
    shop.mesh.remove_pod(&shop.client)?;
    expect(&shop.receiver, Kind::Client, "pod_left").await?;
    expect(&shop.receiver, Kind::Server, "pod_left").await?;
    none_is_open(&shop.a).await
}

#[tokio::test]
async fn by_a_server_that_leaves_the_mesh() -> anyhow::Result<()> {
    let shop = Shop::open().await?;
    let mut under_way = UnderWay { _lines: Vec::new() };
    let (opaque, http) = (shop.near.listen(TCP.target)?, shop.near.listen(HTTP.target)?);
    under_way.opaque(shop.dial(shop.service("near", TCP)).await?, &opaque).await?;
    let client = shop.dial(shop.service("near", HTTP)).await?;
    under_way.request(client, &http, "GET /waiting HTTP/1.1\r\n", "").await?;
    shop.mesh.remove_pod(&shop.near)?;
    let spans = shop
        .receiver
        .wait_for(PATIENCE, |spans| spans.iter().filter(|span| span.is_agents()).count() >= 4);
    let spans = spans.await?;
    for kind in [Kind::Client, Kind::Server] {
        let expected = all("pod_left").into_iter();
        let expected: BTreeMap<_, _> =
            expected.filter(|(what, _)| ["opaque", "waiting"].contains(&&**what)).collect();
        assert_eq!(endings(&spans, kind), expected, "{kind:?}");
    }
    none_is_open(&shop.a).await
}

#[tokio::test]
async fn by_a_policy_that_allows_no_plaintext_any_more() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let _agents = mesh.start_agents(&[]).await?;
    let (opaque, http) = (mesh.far.listen(Mesh::TCP_TARGET)?, mesh.far.listen(Mesh::HTTP_TARGET)?);
    let dial = async |port| {
        let to = SocketAddr::new(mesh.far.ip(), port);
        Ok(Line::new(mesh.outsider.connect(to).await?))
    };
    let ports = [Mesh::TCP_TARGET, Mesh::HTTP_TARGET];
    let _under_way = UnderWay::start(dial, ports, [&opaque, &http]).await?;
    mesh.config.write(
        "policies",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {namespace: default, name: strict}\nspec: {mtls: {mode: STRICT}}\n",
    )?;
    expect(&mesh.receiver, Kind::Server, "mutual_tls_required").await?;
    none_is_open(&mesh.b).await
}
