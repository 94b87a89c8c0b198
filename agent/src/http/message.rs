//! What can be asked of a message, and changed in it, whichever version of HTTP it came in.
//!
//! HTTP/1 has its heads as marked bytes, HTTP/2 as maps. Whoever judges requests, follows traces or
//! describes them in spans is written once, for both.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, request, response, uri::PathAndQuery};

use super::target::Target;

/// The version a message came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// As `network.protocol.version` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::Http10 => "1.0",
            Version::Http11 => "1.1",
            Version::Http2 => "2",
        }
    }
}

/// The fields of a message. Names compare without regard to case (RFC 9110 §5.1); here they are
/// written in small letters.
pub trait Fields {
    /// Every value of the fields called `name`, in their order.
    fn values_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]>;

    /// The first of them.
    fn value_of<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        self.values_of(name).next()
    }

    /// Leaves these fields out.
    fn remove(&mut self, name: &str);

    /// Adds a field behind all others. Nothing that would end its line may be in `value`.
    fn add(&mut self, name: &'static str, value: &[u8]);

    /// The same of a name that is not known before.
    fn add_field(&mut self, name: &HeaderName, value: &[u8]);

    /// Shows name and value of every field, in their order.
    fn each(&self, show: &mut dyn FnMut(&[u8], &[u8]));

    /// Makes `value` the only one of the fields called `name`.
    fn set(&mut self, name: &'static str, value: &[u8]) {
        self.remove(name);
        self.add(name, value);
    }
}

/// The head of a request.
pub trait AnyRequest: Fields {
    /// Such as `GET`.
    fn method(&self) -> &[u8];
    /// What is asked for.
    fn target(&self) -> Target<'_>;
    /// The version it came in.
    fn version(&self) -> Version;
    /// Asks for another path, with the same query. To be of bytes that a URI may have.
    fn set_path(&mut self, path: &[u8]);
    /// Asks with another query, or with none, for the same path. To be of bytes that a URI may have.
    fn set_query(&mut self, query: Option<&[u8]>);
}

/// The head of a response.
pub trait AnyResponse: Fields {
    /// Such as 200.
    fn status(&self) -> u16;
}

impl Fields for HeaderMap {
    fn values_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.get_all(name).into_iter().map(HeaderValue::as_bytes)
    }

    fn remove(&mut self, name: &str) {
        HeaderMap::remove(self, name);
    }

    fn add(&mut self, name: &'static str, value: &[u8]) {
        self.add_field(&HeaderName::from_static(name), value);
    }

    fn add_field(&mut self, name: &HeaderName, value: &[u8]) {
        let value = HeaderValue::from_bytes(value);
        debug_assert!(value.is_ok(), "{name}");
        if let Ok(value) = value {
            self.append(name, value);
        }
    }

    fn each(&self, show: &mut dyn FnMut(&[u8], &[u8])) {
        self.iter().for_each(|(name, value)| show(name.as_str().as_bytes(), value.as_bytes()));
    }
}

/// The same of something that has a map of fields.
macro_rules! has_fields {
    ($message:ty) => {
        impl Fields for $message {
            fn values_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
                self.headers.values_of(name)
            }

            fn remove(&mut self, name: &str) {
                Fields::remove(&mut self.headers, name);
            }

            fn add(&mut self, name: &'static str, value: &[u8]) {
                self.headers.add(name, value);
            }

            fn add_field(&mut self, name: &HeaderName, value: &[u8]) {
                self.headers.add_field(name, value);
            }

            fn each(&self, show: &mut dyn FnMut(&[u8], &[u8])) {
                self.headers.each(show);
            }
        }
    };
}

has_fields!(request::Parts);
has_fields!(response::Parts);

impl AnyRequest for request::Parts {
    fn method(&self) -> &[u8] {
        self.method.as_str().as_bytes()
    }

    fn target(&self) -> Target<'_> {
        Target {
            scheme: self.uri.scheme_str().map(str::as_bytes),
            authority: self.uri.authority().map(|authority| authority.as_str().as_bytes()),
            path: self.uri.path().as_bytes(),
            query: self.uri.query().map(str::as_bytes),
        }
    }

    fn version(&self) -> Version {
        match self.version {
            http::Version::HTTP_2 => Version::Http2,
            http::Version::HTTP_10 => Version::Http10,
            _ => Version::Http11,
        }
    }

    fn set_path(&mut self, path: &[u8]) {
        let query = self.uri.query().map(|query| query.as_bytes().to_vec());
        ask_for(self, path.to_vec(), query.as_deref());
    }

    fn set_query(&mut self, query: Option<&[u8]>) {
        let path = self.uri.path().as_bytes().to_vec();
        ask_for(self, path, query);
    }
}

fn ask_for(head: &mut request::Parts, path: Vec<u8>, query: Option<&[u8]>) {
    let mut asked = path;
    if let Some(query) = query {
        asked.push(b'?');
        asked.extend_from_slice(query);
    }
    let asked = PathAndQuery::from_maybe_shared(Bytes::from(asked));
    debug_assert!(asked.is_ok(), "{:?}", head.uri);
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    if let Ok(asked) = asked {
        parts.path_and_query = Some(asked);
    }
    // The parts of one that was whole, with another path or query.
    head.uri = Uri::from_parts(parts).unwrap_or_default();
}

impl AnyResponse for response::Parts {
    fn status(&self) -> u16 {
        self.status.as_u16()
    }
}
