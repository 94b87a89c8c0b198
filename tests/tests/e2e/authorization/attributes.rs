//! Whatever way a method, a host or a header is written, it is the one that is judged; and a name is a
//! name, not a pattern.

use std::net::SocketAddr;

use sluice_tests::{PodOptions, ports::HTTP};

use super::{DENIED, town::*};

/// What a rule that keeps out `DELETE`, `admin.example` and `x-role: admin` keeps out.
const BYPASSES: [&str; 12] = [
    "DELETE / HTTP/1.1\r\nHost: go-app",
    "delete / HTTP/1.1\r\nHost: go-app",
    "Delete / HTTP/1.1\r\nHost: go-app",
    "GET / HTTP/1.1\r\nHost: admin.example",
    "GET / HTTP/1.1\r\nHost: ADMIN.example",
    "GET / HTTP/1.1\r\nHost: admin.example:80",
    "GET / HTTP/1.1\r\nHost: admin.example.",
    "GET / HTTP/1.1\r\nHost: admin.example.:8080",
    "GET http://admin.example/ HTTP/1.1\r\nHost: go-app",
    "GET / HTTP/1.1\r\nHost: go-app\r\nX-Role: admin",
    "GET / HTTP/1.1\r\nHost: go-app\r\nx-role: guest\r\nx-role: admin",
    "GET / HTTP/1.1\r\nHost: go-app\r\nx-role: admin\r\nx-role: guest",
];

/// What it does not.
const PASSES: [&str; 4] = [
    "GET / HTTP/1.1\r\nHost: go-app",
    "GET / HTTP/1.1\r\nHost: xadmin.example",
    "GET / HTTP/1.1\r\nHost: admin.example.org",
    "GET / HTTP/1.1\r\nHost: go-app\r\nx-role: administrator",
];

#[tokio::test]
async fn no_way_to_write_a_request_gets_past_a_policy_about_it() -> anyhow::Result<()> {
    let policies = policy("all", "{rules: [{}]}")
        + &policy(
            "admin",
            "{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}, {operation: {hosts: \
             [admin.example]}}]}, {when: [{key: 'request.headers[X-Role]', values: [admin]}]}]}",
        );
    for flags in [&[][..], &["--same-node=tunnel"]] {
        let town = Town::with_flags(&policies, flags).await?;
        for server in town.servers() {
            let _app = serve(server, HTTP.target)?;
            for (client, to) in [
                (&town.frontend, service(server, HTTP)),
                (&town.outsider, SocketAddr::new(server.ip(), HTTP.target)),
            ] {
                for head in BYPASSES {
                    assert_eq!(
                        ask(client, to, head).await?,
                        (403, DENIED.into()),
                        "{head} to {to}"
                    );
                }
                for head in PASSES {
                    assert_eq!(ask(client, to, head).await?, (200, "/".into()), "{head} to {to}");
                }
                assert_eq!(ask_http2(client, to, "DELETE", "/").await?.0, 403, "{to}");
                assert_eq!(ask_http2(client, to, "delete", "/").await?.0, 403, "{to}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_dot_in_the_name_of_a_service_account_is_a_dot() -> anyhow::Result<()> {
    let policies = policy(
        "dotted",
        "{selector: {matchLabels: {app: go-app}}, rules: [{from: [{source: {principals: \
         ['cluster.local/ns/default/sa/a.b']}}]}]}",
    );
    for flags in [&[][..], &["--same-node=tunnel"]] {
        let town = Town::without_agents(&policies)?;
        let pod = |name: &str| {
            let service_account = Some(name.to_owned());
            town.a.pod_with(
                &name.replace('.', "-"),
                PodOptions { service_account, ..PodOptions::default() },
            )
        };
        let [dotted, other, longer] = [pod("a.b")?, pod("axb")?, pod("a.b.c")?];
        for pod in [&dotted, &other, &longer] {
            town.config.pod(pod)?;
        }
        let town = town.start(flags).await?;
        for server in town.servers() {
            let _app = serve(server, HTTP.target)?;
            let (to, get) = (service(server, HTTP), "GET / HTTP/1.1\r\nHost: a");
            assert_eq!(ask(&dotted, to, get).await?, (200, "/".into()));
            for stranger in [&other, &longer] {
                let told = ask(stranger, to, get).await;
                assert_eq!(told?, (403, DENIED.into()), "{}", stranger.name());
            }
        }
    }
    Ok(())
}
