//! The external authorizer of Istio's own samples, asked over gRPC and over HTTP.

use std::{env, path::PathBuf, process::Command};

use anyhow::Context;
use http::Version;
use sluice_tests::ports::HTTP;

use super::{external::*, town::*};

/// What it says to whom it does not let in.
const REFUSED: &str =
    "denied by ext_authz for not found header `x-ext-authz: allow` in the request";

#[tokio::test]
async fn istio_s_own_authorizer_says_who_may_pass() -> anyhow::Result<()> {
    let host = "service: checks.default.svc.cluster.local";
    let providers = format!(
        "{{name: grpc, envoyExtAuthzGrpc: {{{host}, port: 9000}}}}\n\
         {{name: http, envoyExtAuthzHttp: {{{host}, port: 8000, includeRequestHeadersInCheck: \
         [x-ext-authz], headersToUpstreamOnAllow: ['x-ext-authz-*']}}}}"
    );
    let policies =
        mesh_config(&providers) + &custom("grpc") + &custom("http") + &only_servers_ask();
    let town = Town::under("").await?;
    expose(&town, &policies).await?;
    let folder = env::var_os("CONFORMANCE_BIN").map(PathBuf::from);
    let folder = folder.context("CONFORMANCE_BIN is not set (hint: cargo xtask test)")?;
    let mut program = Command::new(folder.join("extauthz"));
    program.args(["-allow_service_account", "frontend"]);
    let program = town.other.spawn("extauthz", program)?;
    for server in ["Starting gRPC server", "Starting HTTP server"] {
        program.output().line(sluice_tests::PATIENCE, |line: &str| line.contains(server)).await?;
    }
    for server in town.servers() {
        let _app = telling(server, HTTP.target)?;
        for version in VERSIONS {
            let ask = |client, path: &'static str, allow: Option<&'static str>| {
                let fields: Vec<_> =
                    allow.into_iter().map(|allow| ("x-ext-authz", allow)).collect();
                let to = service(server, HTTP);
                async move { asked(client, to, version, path, &fields).await }
            };
            let what = format!("{} over {version:?}", server.name());
            for path in ["/grpc/items?a=b", "/http/items?a=b"] {
                let answered = ask(&town.frontend, path, Some("allow")).await?;
                assert_eq!(answered.status, 200, "{what} {path}: {}", answered.body);
                let body = answered.body;
                assert!(body.contains("x-ext-authz-check-result: allowed\n"), "{what}: {body}");
                // What the authorizer was told.
                let told = body.lines().find(|line| line.starts_with("x-ext-authz-check-received"));
                let told = told.context("nothing was told")?;
                assert!(told.contains(path), "{told}");
                let answered = ask(&town.frontend, path, Some("no")).await?;
                assert_eq!((answered.status, &*answered.body), (403, REFUSED), "{what} {path}");
                assert_eq!(answered.fields["x-ext-authz-check-result"], "denied");
                // Where no policy has it asked, nothing is.
                let answered = ask(&town.frontend, "/free", Some("no")).await?;
                assert_eq!(answered.status, 200);
                assert!(!answered.body.contains("check-result"));
            }
            let answered = ask(&town.frontend, "/grpc", Some("allow")).await?;
            for said in [
                "spiffe://cluster.local/ns/default/sa/frontend",
                "spiffe://cluster.local/ns/default/sa/go-app",
                "x-ext-authz-additional-header-override: grpc-additional-header-override-value",
                if version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
            ] {
                assert!(answered.body.contains(said), "{what}: {said}: {}", answered.body);
            }
            // Without a word it goes by who asks, which the agent has told it.
            assert_eq!(ask(&town.frontend, "/grpc", None).await?.status, 200, "{what}");
            assert_eq!(ask(&town.monitor, "/grpc", None).await?.status, 403, "{what}");
        }
    }
    Ok(())
}
