//! A Service by the addresses that lead to it from outside the cluster, dialled from inside.

use std::net::{IpAddr, SocketAddr};

use sluice_tests::{Kind, Mesh, Node, PATIENCE, Span, Talk};

/// Those of a load balancer, and of `externalIPs`. Nobody in the lab has them, so that whoever
/// takes them for what they look like does not get through.
const BALANCER: [&str; 2] = ["203.0.113.7", "2001:db8:113::7"];
const EXTERNAL: [&str; 2] = ["198.51.100.7", "2001:db8:100::7"];
const PORT: u16 = 81;
const NODE_PORT: u16 = 30081;
/// A port of the same addresses that the Service does not have.
const OTHER_PORT: u16 = 82;

/// A Service in front of `far`, and of each node a pod that tells of its addresses.
fn declare(mesh: &Mesh, more_external: &str) -> anyhow::Result<()> {
    let [balancer4, balancer6] = BALANCER;
    let [external4, external6] = EXTERNAL;
    let target = Mesh::TCP_TARGET;
    mesh.config.write(
        "front",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: front, namespace: default}}\nspec:\n  \
             type: LoadBalancer\n  clusterIP: 10.96.0.77\n  selector: {{app: far}}\n  \
             externalTrafficPolicy: Local\n  \
             externalIPs: [{external4}, \"{external6}\"{more_external}]\n  \
             ports: [{{name: tcp, port: {PORT}, nodePort: {NODE_PORT}, targetPort: {target}}}, \
             {{name: udp, protocol: UDP, port: {OTHER_PORT}, targetPort: {target}}}]\n\
             status: {{loadBalancer: {{ingress: [{{ip: {balancer4}}}, {{ip: \"{balancer6}\"}}]}}}}\n"
        ),
    )?;
    for node in [&mesh.a, &mesh.b] {
        let [v4, v6] = node.ips();
        let name = node.name();
        mesh.config.write(
            &format!("node-{name}"),
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: proxy-{name}, namespace: kube-system}}\n\
                 spec: {{nodeName: {name}, hostNetwork: true}}\n\
                 status: {{podIP: {v4}, hostIP: {v4}, hostIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n"
            ),
        )?;
    }
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                  metadata: {namespace: default, name: strict}\nspec: {mtls: {mode: STRICT}}\n";
    mesh.config.write("policies", strict)
}

fn addresses(mesh: &Mesh) -> anyhow::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for text in BALANCER.iter().chain(&EXTERNAL) {
        addresses.push(SocketAddr::new(text.parse()?, PORT));
    }
    let of_node = |node: &Node| node.ips().map(|ip| SocketAddr::new(ip, NODE_PORT));
    addresses.extend([&mesh.a, &mesh.b].into_iter().flat_map(of_node));
    Ok(addresses)
}

#[tokio::test]
async fn every_address_of_a_service_leads_to_it_by_mutual_tls() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    declare(&mesh, "")?;
    let _agents = mesh.start_agents(&[]).await?;
    // STRICT: it answers nobody in plaintext.
    let listener = mesh.far.listen(Mesh::TCP_TARGET)?;
    let addresses = addresses(&mesh)?;
    for to in &addresses {
        let talk = Talk::start(&mesh.client, *to, &listener).await?;
        assert_eq!(talk.seen_server()?, *to);
        let of_family = |ip: &IpAddr| ip.is_ipv4() == to.is_ipv4();
        assert_eq!(Some(talk.seen_client()?.ip()), mesh.client.ips().into_iter().find(of_family));
    }
    let ours = |span: &&Span| {
        span.kind == Kind::Client
            && span.attribute("mesh.connection.security_policy") == "mutual_tls"
    };
    let all = |spans: &[Span]| spans.iter().filter(ours).count() == addresses.len();
    mesh.receiver.wait_for(PATIENCE, all).await?;
    Ok(())
}

#[tokio::test]
async fn other_ports_of_such_an_address_are_left_alone() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    // The router's, and a server that is no pod's listens there.
    let router = mesh.lab.fabric_ips()[0];
    declare(&mesh, &format!(", {router}"))?;
    let _agents = mesh.start_agents(&[]).await?;
    let at = SocketAddr::new(router, OTHER_PORT);
    let outside = mesh.lab.fabric().run(|| std::net::TcpListener::bind(at))??;
    outside.set_nonblocking(true)?;
    let outside = tokio::net::TcpListener::from_std(outside)?;
    Talk::start(&mesh.client, at, &outside).await?;
    let listener = mesh.far.listen(Mesh::TCP_TARGET)?;
    Talk::start(&mesh.client, SocketAddr::new(router, PORT), &listener).await?;
    Ok(())
}
