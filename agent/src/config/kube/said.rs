//! What an API server says: the pages of a list, and the lines of a watch.
//!
//! Nearly every object has the form of its kind, and is read as that at once. Only where one has not is all
//! that came with it read as JSON of any form first, to find out which one that is.

use std::{borrow::Cow, error, io, pin::Pin};

use futures_util::{AsyncBufRead, AsyncBufReadExt};
use http::{HeaderValue, header::ACCEPT_ENCODING};
use k8s_openapi::{
    Metadata,
    apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta},
};
use kube::{Client, Error, core::Status};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::arrival::Arrival;

/// Annotation of the bookmark that ends a streamed list.
const LIST_ENDS: &str = "k8s.io/initial-events-end";

/// A page of a list.
pub(super) struct Page<K> {
    pub(super) metadata: ListMeta,
    pub(super) items: Vec<Arrival<K>>,
}

#[derive(Deserialize)]
struct List<O> {
    #[serde(default)]
    metadata: ListMeta,
    items: Option<Vec<O>>,
}

impl<K: DeserializeOwned + Metadata<Ty = ObjectMeta>> Page<K> {
    /// Asks for one.
    pub(super) async fn ask(
        client: &Client,
        request: http::Request<Vec<u8>>,
    ) -> kube::Result<Self> {
        let text = client.request_text(request).await?;
        Self::read(&text).map_err(Error::SerdeError)
    }

    fn read(text: &str) -> serde_json::Result<Self> {
        let as_kind = serde_json::from_str::<List<K>>(text).ok().and_then(|list| {
            let items = list.items.into_iter().flatten().map(Arrival::of);
            Some(Self { metadata: list.metadata, items: items.collect::<Result<_, _>>().ok()? })
        });
        if let Some(page) = as_kind {
            return Ok(page);
        }
        let list = serde_json::from_str::<List<Value>>(text)?;
        let items = list.items.into_iter().flatten().map(Arrival::of_any);
        Ok(Self { metadata: list.metadata, items: items.collect::<Result<_, _>>()? })
    }
}

/// One event of a watch.
#[derive(Debug)]
pub(super) enum Event<K> {
    /// An object is new or different.
    Set(Arrival<K>),
    /// An object is gone.
    Gone(Arrival<K>),
    /// How far the watch has come, and whether a streamed list ends here.
    Bookmark { version: Option<String>, ends_list: bool },
    /// Why it does not go on.
    Failed(Box<Status>),
}

/// A line of a watch.
#[derive(Deserialize)]
struct Line<'a, O> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    object: O,
}

impl<K: DeserializeOwned + Metadata<Ty = ObjectMeta>> Event<K> {
    fn read(line: &str) -> serde_json::Result<Self> {
        let as_kind = serde_json::from_str::<Line<'_, K>>(line).ok();
        if let Some(event) = as_kind.and_then(|Line { kind, object }| Self::of(&kind, object)) {
            return Ok(event);
        }
        let Line { kind, object } = serde_json::from_str::<Line<'_, Value>>(line)?;
        Ok(match &*kind {
            "ADDED" | "MODIFIED" => Self::Set(Arrival::of_any(object)?),
            "DELETED" => Self::Gone(Arrival::of_any(object)?),
            "BOOKMARK" => Self::bookmark(&serde_json::from_value(object["metadata"].clone())?),
            "ERROR" => Self::Failed(serde_json::from_value(object)?),
            other => {
                let what = format!("an event of a type that nobody knows: {other:?}");
                return Err(serde::de::Error::custom(what));
            }
        })
    }

    /// `None` where it takes a closer look.
    fn of(kind: &str, object: K) -> Option<Self> {
        match kind {
            "ADDED" | "MODIFIED" => Some(Self::Set(Arrival::of(object).ok()?)),
            "DELETED" => Some(Self::Gone(Arrival::of(object).ok()?)),
            "BOOKMARK" => Some(Self::bookmark(object.metadata())),
            _ => None,
        }
    }

    fn bookmark(metadata: &ObjectMeta) -> Self {
        let annotations = metadata.annotations.as_ref();
        let ends_list = annotations.is_some_and(|all| all.contains_key(LIST_ENDS));
        Self::Bookmark { version: metadata.resource_version.clone(), ends_list }
    }
}

/// What one connection of a watch tells.
pub(super) struct Events {
    lines: Pin<Box<dyn AsyncBufRead + Send>>,
    /// Spares an allocation for each line.
    line: Vec<u8>,
}

impl Events {
    /// Begins to watch.
    pub(super) async fn open(
        client: &Client,
        mut request: http::Request<Vec<u8>>,
    ) -> kube::Result<Self> {
        // Kubernetes from 1.37 on compresses each event by itself, which the client cannot undo.
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let lines = Box::pin(client.request_stream(request).await?);
        Ok(Self { lines, line: Vec::new() })
    }

    /// The next event; `None` when the server has ended the watch. To be asked again only where it was
    /// waited for to the end.
    pub(super) async fn next<K>(&mut self) -> kube::Result<Option<Event<K>>>
    where
        K: DeserializeOwned + Metadata<Ty = ObjectMeta>,
    {
        loop {
            self.line.clear();
            match self.lines.read_until(b'\n', &mut self.line).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if is_cut(&error) => return Ok(None),
                Err(error) => return Err(Error::ReadEvents(error)),
            }
            let line = str::from_utf8(self.line.trim_ascii()).unwrap_or_default();
            if line.is_empty() {
                continue;
            }
            return match Event::read(line) {
                Ok(event) => Ok(Some(event)),
                // Cut off in the middle of what it was about to say.
                Err(error) if error.is_eof() => Ok(None),
                // Some proxies answer with an error alone.
                Err(error) => Err(match serde_json::from_str::<Status>(line) {
                    Ok(status) => Error::Api(Box::new(status)),
                    Err(_) => Error::SerdeError(error),
                }),
            };
        }
    }
}

/// Whether it is the end of a connection that nobody announced: servers and what is before them end watches
/// like that, and then it goes on where it was.
fn is_cut(error: &io::Error) -> bool {
    let mut cause: Option<&(dyn error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let of_io = error.downcast_ref::<io::Error>();
        let ended = [io::ErrorKind::UnexpectedEof, io::ErrorKind::TimedOut];
        if of_io.is_some_and(|error| ended.contains(&error.kind())) {
            return true;
        }
        cause = error.source();
    }
    error.to_string().contains("unexpected EOF during chunk")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    const POD: &str = r#"{"metadata": {"name": "a", "namespace": "shop", "resourceVersion": "7"}}"#;
    const UNFIT: &str = r#"{"metadata": {"name": "b", "namespace": "shop", "resourceVersion": "8"},
        "status": {"podIPs": [{"ip": 7}]}}"#;
    const WHY: &str = "status.podIPs[0].ip: invalid type: integer `7`, expected a string";

    fn event(kind: &str, object: &str) -> serde_json::Result<Event<Pod>> {
        Event::read(&format!(r#"{{"type": "{kind}", "object": {object}}}"#))
    }

    #[test]
    fn an_object_that_does_not_fit_is_named_with_its_field_and_the_others_are_read() {
        let list =
            format!(r#"{{"metadata": {{"resourceVersion": "9"}}, "items": [{POD}, {UNFIT}]}}"#);
        let page = Page::<Pod>::read(&list).unwrap();
        assert_eq!(page.metadata.resource_version.as_deref(), Some("9"));
        let [fit, unfit] = &*page.items else { panic!("{:?}", page.items) };
        assert_eq!((fit.name.as_str(), fit.version.as_deref()), ("a", Some("7")));
        assert!(fit.object.is_ok());
        assert_eq!((unfit.namespace.as_str(), unfit.name.as_str()), ("shop", "b"));
        assert_eq!(unfit.object.as_ref().unwrap_err().why, WHY);

        let Event::Set(arrival) = event("MODIFIED", UNFIT).unwrap() else { panic!("no change") };
        assert_eq!(arrival.version.as_deref(), Some("8"));
        assert_eq!(arrival.object.unwrap_err().why, WHY);
    }

    #[test]
    fn an_empty_list_is_one() {
        for items in ["[]", "null"] {
            let list = format!(r#"{{"metadata": {{}}, "items": {items}}}"#);
            assert!(Page::<Pod>::read(&list).unwrap().items.is_empty());
        }
        assert!(Page::<Pod>::read(r#"{"items": [{"metadata": {}}]}"#).is_err());
    }

    #[test]
    fn events_are_what_their_type_says() {
        assert!(matches!(event("ADDED", POD), Ok(Event::Set(pod)) if pod.name == "a"));
        assert!(matches!(event("DELETED", POD), Ok(Event::Gone(pod)) if pod.name == "a"));
        assert!(matches!(event("DELETED", UNFIT), Ok(Event::Gone(pod)) if pod.name == "b"));
        for (annotations, ends) in
            [("{}", false), (r#"{"k8s.io/initial-events-end": "true"}"#, true)]
        {
            let mark = format!(
                r#"{{"metadata": {{"resourceVersion": "9", "annotations": {annotations}}}}}"#
            );
            let Ok(Event::Bookmark { version, ends_list }) = event("BOOKMARK", &mark) else {
                panic!("no bookmark");
            };
            assert_eq!((version.as_deref(), ends_list), (Some("9"), ends));
        }
        let status = r#"{"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired"}"#;
        assert!(matches!(event("ERROR", status), Ok(Event::Failed(status)) if status.code == 410));
        assert!(event("SOMETHING", POD).is_err());
    }

    #[test]
    fn a_line_is_read_whatever_comes_first_in_it() {
        let line = format!(r#"{{"object": {POD}, "type": "ADDED"}}"#);
        assert!(matches!(Event::<Pod>::read(&line), Ok(Event::Set(pod)) if pod.name == "a"));
        let cut = &line[..line.len() / 2];
        assert!(Event::<Pod>::read(cut).unwrap_err().is_eof());
    }
}
