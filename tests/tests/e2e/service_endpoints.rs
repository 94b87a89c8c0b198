//! Which of a Service's endpoints takes what the Service is sent, as Kubernetes has it.

use std::{collections::BTreeSet, net::SocketAddr};

use sluice_tests::{Agent, Mesh, PATIENCE, Pod, eventually};
use tokio::{net::TcpListener, time::timeout};

const VIP: [u8; 4] = [10, 96, 0, 88];
const PORT: u16 = 81;
const READY: &str = "{ready: true}";
const LEAVING: &str = "{ready: false, serving: true, terminating: true}";
const UNWELL: &str = "{ready: false, serving: false}";

/// `near` on the client's node and `far` on the other one, behind one Service.
struct Both {
    mesh: Mesh,
    near: TcpListener,
    far: TcpListener,
}

impl Both {
    fn new() -> anyhow::Result<Self> {
        let mesh = Mesh::new()?;
        let listen = |pod: &Pod| pod.listen(Mesh::TCP_TARGET);
        Ok(Self { near: listen(&mesh.near)?, far: listen(&mesh.far)?, mesh })
    }

    /// The Service with what is in its spec, and the conditions of `near` and `far`.
    fn declare(&self, spec: &str, near: &str, far: &str) -> anyhow::Result<()> {
        let endpoint = |pod: &Pod, conditions: &str| {
            let (ip, name, node) = (pod.ip(), pod.name(), pod.node());
            format!(
                "- {{addresses: [{ip}], nodeName: {node}, conditions: {conditions}, \
                 targetRef: {{kind: Pod, name: {name}}}}}\n"
            )
        };
        let endpoints = endpoint(&self.mesh.near, near) + &endpoint(&self.mesh.far, far);
        let (vip, target) = (SocketAddr::from((VIP, PORT)).ip(), Mesh::TCP_TARGET);
        self.mesh.config.write(
            "both",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: both, namespace: default}}\n\
                 spec: {{clusterIP: {vip}, ports: [{{name: tcp, port: {PORT}}}]{spec}}}\n---\n\
                 apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: both-x, namespace: default, labels: \
                 {{kubernetes.io/service-name: both}}}}\naddressType: IPv4\n\
                 ports: [{{name: tcp, port: {target}}}]\nendpoints:\n{endpoints}"
            ),
        )
    }

    /// Who answers a connection of `client` to the Service: `near` or `far`.
    async fn reached(&self, client: &Pod) -> anyhow::Result<&'static str> {
        let _dialled = client.connect((VIP, PORT).into()).await?;
        let accepted = async {
            tokio::select! {
                accepted = self.near.accept() => accepted.map(|_| "near"),
                accepted = self.far.accept() => accepted.map(|_| "far"),
            }
        };
        Ok(timeout(PATIENCE, accepted).await??)
    }

    /// All who answer `times` connections of `client`.
    async fn all_reached(
        &self,
        client: &Pod,
        times: usize,
    ) -> anyhow::Result<BTreeSet<&'static str>> {
        let mut reached = BTreeSet::new();
        for _ in 0..times {
            reached.insert(self.reached(client).await?);
        }
        Ok(reached)
    }

    /// Waits until `client` reaches these and nobody else, after another declaration.
    async fn reaches_now(&self, wanted: &[&'static str]) -> anyhow::Result<()> {
        let wanted: BTreeSet<_> = wanted.iter().copied().collect();
        let reaches = async {
            // Turns lead to all there are, within as many connections.
            while self.all_reached(&self.mesh.client, 4).await? != wanted {}
            anyhow::Ok(())
        };
        timeout(PATIENCE, reaches).await?
    }
}

#[tokio::test]
async fn who_is_on_its_way_out_takes_what_nobody_else_can() -> anyhow::Result<()> {
    let both = Both::new()?;
    both.declare("", LEAVING, UNWELL)?;
    let _agents = both.mesh.start_agents(&[]).await?;
    assert_eq!(both.all_reached(&both.mesh.client, 4).await?, ["near"].into());
    both.declare("", LEAVING, READY)?;
    both.reaches_now(&["far"]).await?;
    both.declare("", READY, READY)?;
    both.reaches_now(&["far", "near"]).await
}

#[tokio::test]
async fn what_is_to_stay_on_the_node_stays_there() -> anyhow::Result<()> {
    let both = Both::new()?;
    let local = ", internalTrafficPolicy: Local";
    both.declare(local, READY, READY)?;
    let _agents = both.mesh.start_agents(&[]).await?;
    assert_eq!(both.all_reached(&both.mesh.client, 6).await?, ["near"].into());
    // `far` is another node's client, and alone there.
    assert_eq!(both.all_reached(&both.mesh.far, 6).await?, ["far"].into());
    both.declare("", READY, READY)?;
    both.reaches_now(&["far", "near"]).await
}

#[tokio::test]
async fn a_client_with_session_affinity_stays_where_it_was() -> anyhow::Result<()> {
    let both = Both::new()?;
    let sticky = ", sessionAffinity: ClientIP";
    both.declare(sticky, READY, READY)?;
    let _agents = both.mesh.start_agents(&[]).await?;
    let client = &both.mesh.client;
    let first = both.reached(client).await?;
    assert_eq!(both.all_reached(client, 6).await?, [first].into());
    // Whoever takes no more lets it go, and it stays at the other one then.
    let (other, [near, far]) = match first {
        "near" => ("far", [UNWELL, READY]),
        _ => ("near", [READY, UNWELL]),
    };
    both.declare(sticky, near, far)?;
    both.reaches_now(&[other]).await?;
    let version = || -> anyhow::Result<_> {
        Ok(Agent::status(&both.mesh.a)?["configuration"]["version"].as_u64())
    };
    let before = version()?;
    both.declare(sticky, READY, READY)?;
    eventually("the other one is back", || async { Ok((version()? > before).then_some(())) })
        .await?;
    assert_eq!(both.all_reached(client, 6).await?, [other].into());
    Ok(())
}
