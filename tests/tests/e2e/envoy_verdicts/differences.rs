//! Where the two differ: the agent refuses what Envoy does not. `docs/compatibility.md` says so too.

/// A request that the agent alone refuses.
#[derive(Debug)]
pub(super) struct Difference {
    pub(super) policies: &'static str,
    pub(super) line: &'static str,
    pub(super) why: Why,
}

/// What a request can be taken for that Envoy takes it for something else.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why {
    /// Several slashes are one, and escaped ones are some.
    Slashes,
    /// A host is the same with its port, or with a dot at its end.
    Hosts,
    /// Of several fields of a name, an application may look at one or the other.
    Fields,
}

const fn by(why: Why, policies: &'static str, line: &'static str) -> Difference {
    Difference { policies, line, why }
}

pub(super) const DIFFERENCES: &[Difference] = &[
    by(Why::Slashes, "deny paths", "GET //admin"),
    by(Why::Slashes, "deny paths", "GET /%2Fadmin"),
    by(Why::Slashes, "deny paths", "GET /%5cadmin"),
    by(Why::Slashes, "deny paths", "GET /\\admin"),
    by(Why::Slashes, "deny paths", "GET /public/..%2fadmin"),
    by(Why::Slashes, "deny a beginning", "GET //admin"),
    by(Why::Slashes, "deny a beginning", "GET /%2Fadmin"),
    by(Why::Slashes, "deny a beginning", "GET /%5cadmin"),
    by(Why::Slashes, "deny a beginning", "GET /\\admin"),
    by(Why::Slashes, "deny a beginning", "GET /public/..%2fadmin"),
    by(Why::Slashes, "allow a beginning", "GET /public/..%2fadmin"),
    by(Why::Slashes, "allow but paths", "GET //admin"),
    by(Why::Slashes, "allow but paths", "GET /%2Fadmin"),
    by(Why::Slashes, "allow but paths", "GET /%5cadmin"),
    by(Why::Slashes, "allow but paths", "GET /\\admin"),
    by(Why::Slashes, "allow but paths", "GET /public/..%2fadmin"),
    by(Why::Slashes, "allow one segment", "GET /a/b%2Fx/c"),
    by(Why::Slashes, "deny one segment", "GET /public//a"),
    by(Why::Slashes, "allow any segments", "GET /public/..%2fadmin"),
    by(Why::Hosts, "deny a host", "GET /public/"),
    by(Why::Hosts, "allow but hosts", "GET /public/"),
    by(Why::Fields, "allow a header", "GET /public/"),
    by(Why::Fields, "allow beginnings", "GET /public/"),
];
