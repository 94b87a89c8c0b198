//! Whatever way a path is written, it is the one that is judged.

use std::net::SocketAddr;

use super::{DENIED, raw_http2, town::*};
use sluice_tests::ports::{HTTP, UNDECLARED};

/// Ways to write the target of a request that leads to `/admin`, with what comes of it where that is
/// denied, and everything else allowed.
const BYPASSES: [(&str, u16); 23] = [
    ("/admin", 403),
    ("/admin?x=/public", 403),
    ("/admin/", 403),
    ("//admin", 403),
    ("///admin", 403),
    ("/public/../admin", 403),
    ("/public/%2e%2E/admin", 403),
    ("/./admin", 403),
    ("/%61dmin", 403),
    ("/%2Fadmin", 403),
    ("/%2fadmin", 403),
    ("/%5Cadmin", 403),
    ("/\\admin", 403),
    ("/public\\..\\admin", 403),
    ("/public/..%2fadmin", 403),
    ("/public/..;x=1/admin", 403),
    ("/admin;x=1", 403),
    ("/public/..%5c..%5cadmin", 403),
    ("http://go-app/admin", 403),
    ("http://go-app//admin", 403),
    ("/admin#public", 400),
    ("/public#/../admin", 400),
    ("/admin%00", 400),
];

/// Others, which lead elsewhere, with what the application is asked for.
const PASSES: [(&str, &str); 7] = [
    ("/ADMIN", "/ADMIN"),
    ("/public/admin", "/public/admin"),
    ("/public?a=/admin", "/public?a=/admin"),
    ("/admin/../public?x=../admin", "/public?x=../admin"),
    ("/public/%7euser/./a%20b", "/public/~user/a%20b"),
    ("/public//a%2Fb", "/public//a%2Fb"),
    ("/%2561dmin", "/%2561dmin"),
];

/// What some application takes for `/admin`, or for a way to say it later, and what it gets where the port
/// is declared as HTTP.
const NO_TARGETS: [(&str, u16); 8] = [
    ("GET admin", 400),
    ("GET x:/admin", 400),
    ("GET http:/admin", 400),
    ("GET http://u@go-app/admin", 400),
    ("GET *", 400),
    ("CONNECT /admin", 403),
    ("CONNECT go-app:80/admin", 403),
    ("CONNECT go-app:80", 403),
];

#[tokio::test]
async fn no_way_to_write_a_path_gets_past_a_policy_about_it() -> anyhow::Result<()> {
    let policies = policy("all", "{rules: [{}]}")
        + &policy(
            "admin",
            "{action: DENY, rules: [{to: [{operation: {paths: [/admin, '/admin/*']}}]}]}",
        );
    for flags in [&[][..], &["--same-node=tunnel"]] {
        let town = Town::with_flags(&policies, flags).await?;
        for server in town.servers() {
            let _apps = [serve(server, HTTP.target)?, serve(server, UNDECLARED.target)?];
            for (client, to) in [
                (&town.frontend, service(server, HTTP)),
                (&town.frontend, SocketAddr::new(server.ip(), UNDECLARED.target)),
                (&town.outsider, SocketAddr::new(server.ip(), HTTP.target)),
            ] {
                for (target, status) in BYPASSES {
                    let head = format!("GET {target} HTTP/1.1\r\nHost: go-app");
                    let answered = ask(client, to, &head).await?;
                    assert_eq!(answered.0, status, "{target} to {to}: {answered:?}");
                }
                for (target, expected) in PASSES {
                    let head = format!("GET {target} HTTP/1.1\r\nHost: go-app");
                    assert_eq!(ask(client, to, &head).await?, (200, expected.into()), "{to}");
                }
                for (line, status) in NO_TARGETS {
                    if to.port() != UNDECLARED.target {
                        let head = format!("{line} HTTP/1.1\r\nHost: go-app");
                        assert_eq!(ask(client, to, &head).await?.0, status, "{line} to {to}");
                    }
                }
                for (target, status) in BYPASSES {
                    let answered = raw_http2::get(client, to, target).await?;
                    let what = format!("{target} to {to} over HTTP/2: {answered:?}");
                    match (status, target.split_once('#')) {
                        // A fragment is left out, in what is judged and in what the application gets.
                        (_, Some(("/public", _))) => {
                            assert_eq!(answered.as_deref(), Some("/public"), "{what}");
                        }
                        (403, _) | (_, Some(_)) if target.starts_with('/') => {
                            assert_eq!(answered.as_deref(), Some(DENIED), "{what}");
                        }
                        // There is no such target: whoever notices first, the application is not asked.
                        _ => assert!(answered.is_none_or(|body| !body.contains('/')), "{what}"),
                    }
                }
                for (target, expected) in PASSES {
                    let answered = raw_http2::get(client, to, target).await?;
                    assert_eq!(answered.as_deref(), Some(expected), "{target} to {to}");
                }
                let answered = ask_http2(client, to, "GET", "/a/../b?c").await?;
                assert_eq!(answered, (200, "/b?c".into()), "{to}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn requests_of_pods_without_a_policy_about_paths_go_on_as_they_came() -> anyhow::Result<()> {
    let town =
        Town::under(&policy("all", "{rules: [{to: [{operation: {methods: ['*']}}]}]}")).await?;
    for server in town.servers() {
        let _app = serve(server, HTTP.target)?;
        let head = "GET /a/../b//c%2e HTTP/1.1\r\nHost: a";
        let answered = ask(&town.frontend, service(server, HTTP), head).await?;
        assert_eq!(answered, (200, "/a/../b//c%2e".into()));
    }
    Ok(())
}
