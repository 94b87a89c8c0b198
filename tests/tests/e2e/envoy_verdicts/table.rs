//! What is asked, by whom, and under which policies.

use serde_json::{Value, json};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// `spiffe://cluster.local/ns/default/sa/client`.
    Client,
    /// The service account `web.v1`, of the namespace `team-a`.
    Dotted,
    /// Nobody who has proved anything.
    Stranger,
    /// The client, over IPv6.
    Six,
}

use Who::{Client, Dotted, Six, Stranger};

const HOST: &str = "Host: go.example";

/// Each with the line of a request and its fields.
pub(super) const ASKS: &[(Who, &str, &[&str])] = &[
    (Client, "GET /", &[HOST]),
    (Client, "GET /admin", &[HOST]),
    (Client, "GET /admin/x", &[HOST]),
    (Client, "GET /admin?x=/public/", &[HOST]),
    (Client, "GET //admin", &[HOST]),
    (Client, "GET /%61dmin", &[HOST]),
    (Client, "GET /%2Fadmin", &[HOST]),
    (Client, "GET /%5cadmin", &[HOST]),
    (Client, "GET /\\admin", &[HOST]),
    (Client, "GET /./admin", &[HOST]),
    (Client, "GET /public/../admin", &[HOST]),
    (Client, "GET /public/%2e%2E/admin", &[HOST]),
    (Client, "GET /public/..%2fadmin", &[HOST]),
    (Client, "GET /public/..;/admin", &[HOST]),
    (Client, "GET /ADMIN", &[HOST]),
    (Client, "GET /public/a.txt?x=/admin", &[HOST]),
    (Client, "GET /public/a.txt#/admin", &[HOST]),
    (Client, "GET /public//a", &[HOST]),
    (Client, "GET /public/a%20b%zz", &[HOST]),
    (Client, "GET /public/a*b", &[HOST]),
    (Client, "GET /public/\"a<b>{c}|^`", &[HOST]),
    (Client, "GET /public/%00", &[HOST]),
    (Client, "GET /a/b/c", &[HOST]),
    (Client, "GET /a/b%2Fx/c", &[HOST]),
    (Client, "GET /a//c/", &[HOST]),
    (Client, "GET http://go.example/admin", &["Host: go.example"]),
    (Client, "GET http://go.example", &["Host: go.example"]),
    (Client, "POST /public/", &[HOST, "Content-Length: 0"]),
    (Client, "PUT /public/", &[HOST, "Content-Length: 0"]),
    (Client, "DELETE /admin", &[HOST]),
    (Client, "OPTIONS /public/", &[HOST]),
    (Client, "GET /public/", &["Host: GO.Example"]),
    (Client, "GET /public/", &["Host: go.example:8080"]),
    (Client, "GET /public/", &["Host: go.example."]),
    (Client, "GET /public/", &["Host: admin.go.example"]),
    (Client, "GET /public/", &["Host: goXexample"]),
    (Client, "GET /public/", &[HOST, "X-Team: blue"]),
    (Client, "GET /public/", &[HOST, "x-team: Blue"]),
    (Client, "GET /public/", &[HOST, "x-team: bluebell"]),
    (Client, "GET /public/", &[HOST, "x-team:"]),
    (Client, "GET /public/", &[HOST, "x-team: red", "x-team: blue"]),
    (Client, "GET /public/", &[HOST, "x-team: blue", "x-team: red"]),
    (Client, "GET /public/", &[HOST, "x-team: red,blue"]),
    (Client, "GET /public/", &[HOST, "X-Forwarded-For: 192.0.2.7"]),
    (Client, "GET /public/", &[HOST, "X-Forwarded-For: 192.0.2.7, 198.51.100.1"]),
    (Client, "GET /public/", &[HOST, "X-Forwarded-For: 2001:db8::7"]),
    (Client, "GET /public/", &[HOST, "X-Forwarded-For: nobody"]),
    (Dotted, "GET /admin", &[HOST]),
    (Dotted, "GET /public/", &[HOST]),
    (Stranger, "GET /admin", &[HOST]),
    (Stranger, "GET /public/", &[HOST]),
    (Six, "GET /admin", &[HOST]),
    (Six, "GET /public/", &[HOST]),
];

/// Policies, each set under a name. `$SERVER` is the address of whoever is asked, `$CLIENT` the client's.
pub(super) fn cases() -> Vec<(&'static str, Vec<Value>)> {
    let operation = |operation: Value| json!({"to": [{"operation": operation}]});
    let source = |source: Value| json!({"from": [{"source": source}]});
    let when = |key: &str, values: Value| {
        let mut condition = values;
        condition["key"] = key.into();
        json!({"when": [condition]})
    };
    let allow = |rule: Value| vec![json!({"rules": [rule]})];
    let deny = |rule: Value| vec![json!({"action": "DENY", "rules": [rule]})];
    vec![
        ("allow nothing", vec![json!({})]),
        ("allow all", vec![json!({"rules": [{}]})]),
        ("deny all", vec![json!({"action": "DENY", "rules": [{}]})]),
        ("deny paths", deny(operation(json!({"paths": ["/admin", "/admin/*"]})))),
        ("deny a beginning", deny(operation(json!({"paths": ["/admin*"]})))),
        ("allow a beginning", allow(operation(json!({"paths": ["/public/*"]})))),
        ("allow an ending", allow(operation(json!({"paths": ["*.txt", "*/admin"]})))),
        ("allow any path", allow(operation(json!({"paths": ["*"]})))),
        ("allow the root", allow(operation(json!({"paths": ["/"]})))),
        ("allow but paths", allow(operation(json!({"notPaths": ["/admin*"]})))),
        ("deny but paths", deny(operation(json!({"notPaths": ["/public/*", "/admin"]})))),
        ("allow one segment", allow(operation(json!({"paths": ["/{*}", "/a/{*}/c"]})))),
        ("deny one segment", deny(operation(json!({"paths": ["/public/{*}", "/a/{*}/c"]})))),
        ("allow any segments", allow(operation(json!({"paths": ["/public/{**}", "/a/{**}/"]})))),
        ("allow methods", allow(operation(json!({"methods": ["GET", "P*"]})))),
        ("deny but methods", deny(operation(json!({"notMethods": ["GET"]})))),
        ("allow a host", allow(operation(json!({"hosts": ["go.example"]})))),
        ("allow hosts", allow(operation(json!({"hosts": ["*.example", "GO.example:*"]})))),
        ("deny a host", deny(operation(json!({"hosts": ["go.example"]})))),
        ("allow but hosts", allow(operation(json!({"notHosts": ["admin.*", "go.example"]})))),
        ("allow a port", allow(operation(json!({"ports": ["8080", "9090"]})))),
        ("deny but a port", deny(operation(json!({"notPorts": ["8080"]})))),
        (
            "allow a principal",
            allow(source(json!({"principals": ["cluster.local/ns/default/sa/client"]}))),
        ),
        (
            "allow principals",
            allow(source(json!({"principals": ["cluster.local/ns/team-a/*", "*/sa/clien"]}))),
        ),
        ("allow dots", allow(source(json!({"principals": ["cluster.local/ns/team-a/sa/webXv1"]})))),
        ("deny an ending", deny(source(json!({"principals": ["*/sa/web.v1"]})))),
        ("allow anybody known", allow(source(json!({"principals": ["*"]})))),
        ("deny the unknown", deny(source(json!({"notPrincipals": ["*"]})))),
        ("allow a namespace", allow(source(json!({"namespaces": ["team-*", "other"]})))),
        ("allow but a namespace", allow(source(json!({"notNamespaces": ["team-a"]})))),
        (
            "allow an account",
            allow(source(json!({"serviceAccounts": ["client", "team-a/webXv1"]}))),
        ),
        ("deny but an account", deny(source(json!({"notServiceAccounts": ["team-a/web.v1"]})))),
        ("allow a trust domain", allow(source(json!({"trustDomains": ["cluster.*"]})))),
        (
            "deny a trust domain",
            deny(source(json!({"trustDomains": ["cluster"], "notPrincipals": ["x"]}))),
        ),
        ("allow an address", allow(source(json!({"ipBlocks": ["$CLIENT"]})))),
        ("deny a block", deny(source(json!({"ipBlocks": ["10.0.0.0/8"]})))),
        ("allow but a block", allow(source(json!({"notIpBlocks": ["::/0"]})))),
        (
            "allow who was forwarded",
            allow(source(json!({"remoteIpBlocks": ["192.0.2.0/24", "2001:db8::/32"]}))),
        ),
        ("deny but who was not", deny(source(json!({"notRemoteIpBlocks": ["10.0.0.0/8"]})))),
        ("allow a token", allow(source(json!({"requestPrincipals": ["*"]})))),
        ("deny without a token", deny(source(json!({"notRequestPrincipals": ["*"]})))),
        ("allow a header", allow(when("request.headers[X-Team]", json!({"values": ["blue"]})))),
        ("allow beginnings", allow(when("request.headers[x-team]", json!({"values": ["blu*"]})))),
        ("deny a header", deny(when("request.headers[x-team]", json!({"values": ["blue"]})))),
        ("allow any value", allow(when("request.headers[x-team]", json!({"values": ["*"]})))),
        ("allow without", allow(when("request.headers[x-team]", json!({"notValues": ["*"]})))),
        (
            "allow but a value",
            allow(when("request.headers[x-team]", json!({"notValues": ["blue"]}))),
        ),
        ("allow to here", allow(when("destination.ip", json!({"values": ["$SERVER"]})))),
        ("deny to here", deny(when("destination.port", json!({"values": ["8080"]})))),
        ("allow no name", allow(when("connection.sni", json!({"notValues": ["a.example"]})))),
        (
            "both",
            vec![
                json!({"action": "DENY", "rules": [operation(json!({"methods": ["DELETE", "PUT"]}))]}),
                json!({"rules": [
                    {
                        "from": [
                            {"source": {"namespaces": ["default"], "notIpBlocks": ["fd00::/8"]}},
                            {"source": {"trustDomains": ["elsewhere"]}},
                        ],
                        "to": [
                            {"operation": {"paths": ["/admin"], "methods": ["GET"]}},
                            {"operation": {"hosts": ["admin.*"]}},
                        ],
                    },
                    {
                        "to": [{"operation": {"paths": ["/public/*"]}}],
                        "when": [{"key": "request.headers[x-team]", "values": ["*"]}],
                    },
                ]}),
            ],
        ),
    ]
}
