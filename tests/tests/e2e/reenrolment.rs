//! A captured pod that is captured again, over its former enrolment, as when its addresses change.

use std::{fs, io::ErrorKind, net::SocketAddr, time::Duration};

use anyhow::Context;
use serde_json::Value;
use sluice_tests::{Agent, Mesh, PATIENCE, Talk, eventually, refused, within};
use tokio::io::AsyncReadExt;

const PORT: u16 = 9999;
/// One pod may have half of it.
const CONNECTIONS: usize = 40;
/// How long a client that gets no answer waits for one; those here get theirs at once.
const SILENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn connections_of_before_count_and_end_with_the_pod() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    let flags = ["--max-connections", &CONNECTIONS.to_string()];
    let _agent = mesh.start_agent(&mesh.a, &flags).await?;
    let listener = mesh.outsider.listen(PORT)?;
    let to = SocketAddr::new(mesh.outsider.ip(), PORT);
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS / 2 {
        open.push(Talk::start(&mesh.client, to, &listener).await?);
    }
    let no_more = || refused(&mesh.client, to, &listener, SILENCE);
    assert!(no_more().await?.is_some());

    let name = format!("pod-{}-{}", mesh.client.namespace(), mesh.client.name());
    let pod = fs::read_to_string(mesh.config.directory().join(format!("{name}.yaml")))?;
    let v6 = format!("  - ip: \"{}\"\n", mesh.client.ipv6());
    assert!(pod.contains(&v6), "{pod}");
    mesh.config.write(&name, &pod.replace(&v6, ""))?;
    let ips = || -> anyhow::Result<Value> {
        let status = Agent::status(&mesh.a)?;
        let mut pods = status["pods"].as_array().into_iter().flatten();
        Ok(pods
            .find(|pod| pod["name"] == "default/client")
            .map_or(Value::Null, |p| p["ips"].clone()))
    };
    let only_v4 = Value::from(vec![mesh.client.ip().to_string()]);
    eventually("it is captured anew", || async { Ok((ips()? == only_v4).then_some(())) }).await?;
    for talk in &mut open {
        talk.exchange().await?;
    }
    assert!(no_more().await?.is_some(), "what it had is forgotten");

    let Talk { mut client, mut server } = open.pop().context("there were some")?;
    drop(open);
    let fewer = || async {
        let metrics = Agent::metrics(&mesh.a).await?;
        let used = "sluice_limit_used{resource=\"connections\"} 1";
        Ok(metrics.lines().any(|line| line == used).then_some(()))
    };
    eventually("they are given back", fewer).await?;
    Talk::start(&mesh.client, to, &listener).await?;

    mesh.config.remove_pod(&mesh.client)?;
    for end in [&mut client, &mut server] {
        let read = within(PATIENCE, "the end", end.read_u8()).await?;
        assert_eq!(read.expect_err("no byte").kind(), ErrorKind::ConnectionReset);
    }
    Ok(())
}
