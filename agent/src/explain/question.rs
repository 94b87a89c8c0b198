//! What can be asked.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Unclear;
use crate::http::{AnyRequest, request_head};

/// Who asks whom for what, as people write it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Question {
    /// `namespace/pod`, `pod`, a principal, `sa:namespace/account`, an address, or `outside`.
    pub source: String,
    /// `service`, `service.namespace`, `namespace/pod` or an address, and mostly a port.
    pub destination: String,
    /// The request; without one, whatever is sent first.
    pub ask: Option<Ask>,
}

/// A request.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ask {
    /// `GET` unless said otherwise.
    pub method: Option<String>,
    /// `/` unless said otherwise.
    pub path: Option<String>,
    /// What was dialled unless said otherwise.
    pub host: Option<String>,
    /// Fields by their names.
    pub headers: Vec<(String, String)>,
    /// Its JWT, wherever the server looks for one.
    #[serde(default)]
    pub jwt: Option<String>,
}

impl Ask {
    pub(super) fn method(&self) -> &str {
        self.method.as_deref().unwrap_or("GET")
    }

    pub(super) fn path(&self) -> &str {
        self.path.as_deref().unwrap_or("/")
    }

    /// The request as a client sends it to `host`, and as HTTP/1 of the data path reads it.
    pub(super) fn head(&self, host: &str) -> Result<impl AnyRequest + use<>, Unclear> {
        let host = self.host.as_deref().unwrap_or(host);
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method(), self.path());
        let names_host = self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
        let host = [("host".to_owned(), host.to_owned())];
        for (name, value) in host.iter().filter(|_| !names_host).chain(&self.headers) {
            if value.contains(['\r', '\n']) {
                return Err(Unclear(format!("the header {name} has the end of a line in it")));
            }
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        request_head(Bytes::from(head)).map_err(|why| {
            Unclear(format!(
                "that is no request: {why} (hint: --method GET --path /a?b=c --header 'name: value')"
            ))
        })
    }
}
