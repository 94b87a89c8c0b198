//! The watch of one kind: a list once, then its changes, over whatever happens to the connection.

use std::{
    marker::PhantomData,
    ops::RangeInclusive,
    time::{Duration, SystemTime},
};

use kube::{
    Client, Error,
    api::{ListParams, WatchParams},
    core::{Request, Status},
};
use tokio::{
    sync::{mpsc, watch::Sender},
    time::{sleep, timeout},
};

use super::{
    arrival::Arrival,
    backoff::Backoff,
    kinds::{Kind, Reader},
    said::{Event, Events, Page},
    tables::{Change, Delta, Verdict},
};
use crate::{
    causes::causes,
    config::{
        compile::Key,
        state::{SourceState, WatchState},
    },
};

/// After so many seconds the server ends a watch, in order, and the agent begins another: load
/// spreads over servers that come and go. Not all of them together, which begin together wherever a
/// server does.
const WATCH_SECONDS: RangeInclusive<u32> = 190..=290;
/// A connection that says nothing for longer is dead: there are bookmarks about every minute.
const SILENCE: Duration = Duration::from_secs(150);
/// How long an answer may take to begin.
const ANSWER: Duration = Duration::from_secs(60);
/// Objects in one page of a list, as Kubernetes' own clients have it.
const PAGE: u32 = 500;
/// Objects after which values that went out of use are looked for.
const SWEEP: u64 = 4096;

/// Follows all objects of one kind.
pub(super) struct Watch<F> {
    client: Client,
    changes: mpsc::Sender<Change>,
    reader: Reader,
    reporter: Reporter,
    /// How far it has come; everything is listed where that is not known.
    version: Option<String>,
    /// Which of the kind's versions is asked for, where it has several.
    asked_version: usize,
    /// Whether the server may be able to stream a list. Found out by asking.
    streams_lists: bool,
    read: u64,
    kind: PhantomData<fn() -> F>,
}

/// Why a watch ended out of order.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{}", causes(.0))]
    Failed(#[from] Error),
    #[error("the API server says nothing (hint: is something between it and this node?)")]
    Silent,
    #[error("what happened since is no longer known to the API server: listing again")]
    Gone,
    #[error("lists cannot be streamed: listing in pages")]
    NoStreamedLists,
    #[error("the API server does not have this version of the kind")]
    NoSuchVersion,
    #[error("the agent ends")]
    Ended,
}

/// Tells how the watch is doing.
pub(super) struct Reporter {
    state: Sender<SourceState>,
    index: usize,
}

impl Reporter {
    /// For the watch that is number `index` of the source.
    pub(super) fn new(state: Sender<SourceState>, index: usize) -> Self {
        Self { state, index }
    }

    /// Something was heard. Wakes nobody: it happens all the time.
    fn heard(&self) {
        self.state.send_if_modified(|state| {
            state.watches[self.index].heard_at = Some(SystemTime::now());
            false
        });
    }

    fn change(&self, change: impl FnOnce(&mut WatchState)) {
        self.state.send_modify(|state| change(&mut state.watches[self.index]));
    }
}

impl<F: Kind> Watch<F> {
    pub(super) fn new(
        client: Client,
        changes: mpsc::Sender<Change>,
        reader: Reader,
        reporter: Reporter,
    ) -> Self {
        Self {
            client,
            changes,
            reader,
            reporter,
            version: None,
            asked_version: 0,
            streams_lists: true,
            read: 0,
            kind: PhantomData,
        }
    }

    /// Watches until nobody listens any more.
    pub(super) async fn follow(mut self) {
        let mut backoff = Backoff::new();
        let mut versions_lacking = 0;
        loop {
            let result = self.watch_once().await;
            if !matches!(result, Err(Broken::NoSuchVersion)) {
                versions_lacking = 0;
            }
            let broken = match result {
                Ok(true) => {
                    backoff.reset();
                    continue;
                }
                // A server that ends watches before they begin is not to be asked in a circle.
                Ok(false) => None,
                Err(Broken::Ended) => return,
                Err(Broken::NoStreamedLists) => {
                    tracing::debug!(kind = F::PLURAL, "lists cannot be streamed");
                    self.streams_lists = false;
                    continue;
                }
                Err(Broken::NoSuchVersion) => {
                    self.version = None;
                    self.asked_version = (self.asked_version + 1) % F::OPTIONAL_VERSIONS.len();
                    versions_lacking += 1;
                    if versions_lacking < F::OPTIONAL_VERSIONS.len() {
                        continue;
                    }
                    versions_lacking = 0;
                    if self.is_absent().await.is_err() {
                        return;
                    }
                    None
                }
                Err(broken) => Some(broken),
            };
            if let Some(broken) = broken {
                let error = broken.to_string();
                tracing::debug!(kind = F::PLURAL, error, "a watch is down");
                self.reporter.change(|watch| {
                    if watch.connected || watch.error.is_none() {
                        tracing::warn!(kind = F::PLURAL, error, "a watch of the API server broke");
                    }
                    watch.connected = false;
                    watch.absent = false;
                    watch.restarts += 1;
                    watch.error = Some(error);
                });
            }
            sleep(backoff.next()).await;
        }
    }

    /// No version of the kind is there: there are no objects of it, until it is installed.
    async fn is_absent(&self) -> Result<(), Broken> {
        let mut is_news = false;
        self.reporter.heard();
        self.reporter.change(|watch| {
            is_news = !watch.absent;
            (watch.absent, watch.connected, watch.error) = (true, false, None);
        });
        if is_news {
            tracing::info!(kind = F::PLURAL, "the API server does not have this kind");
            self.send(Delta::All(Vec::new())).await?;
        }
        Ok(())
    }

    /// Lists where that is needed, then watches until the server ends it in order. Whether the
    /// server said anything.
    async fn watch_once(&mut self) -> Result<bool, Broken> {
        let result = match self.version.clone() {
            None if self.streams_lists => self.list_streamed().await,
            None => {
                self.list_in_pages().await?;
                return Ok(true);
            }
            Some(version) => self.resume(&version).await,
        };
        if let Err(Broken::Gone) = result {
            self.version = None;
        }
        result
    }

    /// Lists by a watch that begins with every object, and goes on watching.
    async fn list_streamed(&mut self) -> Result<bool, Broken> {
        let parameters = WatchParams { send_initial_events: true, ..parameters::<F>() };
        let mut events = match self.open(&parameters, "").await {
            // Servers before 1.32, or with the gate WatchList off, refuse what they do not know.
            Err(Broken::Failed(Error::Api(status))) if matches!(status.code, 400 | 422) => {
                return Err(Broken::NoStreamedLists);
            }
            other => other?,
        };
        let mut all = Vec::new();
        while let Some(event) = self.next(&mut events).await? {
            match event {
                Event::Set(arrival) => all.push(self.read(arrival)),
                Event::Bookmark { version, ends_list: true } => {
                    self.version = version;
                    self.send(Delta::All(std::mem::take(&mut all))).await?;
                    self.reporter.change(|watch| watch.lists += 1);
                    return self.stream(events).await;
                }
                // Servers before 1.27 ignore the wish, and never say where the list ends.
                Event::Bookmark { .. } | Event::Gone(_) => return Err(Broken::NoStreamedLists),
                Event::Failed(status) => return Err(error_of(status)),
            }
        }
        Ok(false)
    }

    /// Lists page by page.
    async fn list_in_pages(&mut self) -> Result<(), Broken> {
        let mut all = Vec::new();
        let mut page = ListParams { field_selector: named::<F>(), ..ListParams::default() };
        page = page.limit(PAGE);
        loop {
            let request = self.request().list(&page).map_err(Error::BuildRequest)?;
            let answer = Page::<F::Object>::ask(&self.client, request);
            let list = match timeout(ANSWER, answer).await.map_err(|_| Broken::Silent)? {
                // Pages are of one state, which the server has forgotten meanwhile.
                Err(Error::Api(status)) if status.code == 410 => return Err(Broken::Gone),
                Err(error) => return Err(Self::refused(error)),
                Ok(list) => list,
            };
            self.reporter.heard();
            all.extend(list.items.into_iter().map(|arrival| self.read(arrival)));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => {
                    self.version = list.metadata.resource_version;
                    self.reporter.change(|watch| watch.lists += 1);
                    return self.send(Delta::All(all)).await;
                }
            }
        }
    }

    /// Goes on from `version`.
    async fn resume(&mut self, version: &str) -> Result<bool, Broken> {
        let events = self.open(&parameters::<F>(), version).await?;
        self.stream(events).await
    }

    /// Passes changes on until the server ends the watch. Whether there was any, or a bookmark.
    async fn stream(&mut self, mut events: Events) -> Result<bool, Broken> {
        self.reporter.change(|watch| {
            if watch.error.take().is_some() {
                tracing::info!(kind = F::PLURAL, "a watch of the API server is up again");
            }
            (watch.connected, watch.absent) = (true, false);
        });
        let mut heard = false;
        while let Some(event) = self.next(&mut events).await? {
            heard = true;
            match event {
                Event::Set(arrival) => {
                    let version = arrival.version.clone();
                    let (key, verdict) = self.read(arrival);
                    self.send(Delta::Set(key, verdict)).await?;
                    self.version = version.or(self.version.take());
                }
                Event::Gone(arrival) => {
                    let key = (arrival.namespace.into(), arrival.name.into());
                    self.send(Delta::Gone(key)).await?;
                    self.version = arrival.version.or(self.version.take());
                }
                Event::Bookmark { version, .. } => self.version = version.or(self.version.take()),
                Event::Failed(status) => return Err(error_of(status)),
            }
        }
        Ok(heard)
    }

    async fn open(&self, parameters: &WatchParams, version: &str) -> Result<Events, Broken> {
        let request = self.request().watch(parameters, version).map_err(Error::BuildRequest)?;
        let answer = Events::open(&self.client, request);
        match timeout(ANSWER, answer).await.map_err(|_| Broken::Silent)? {
            Ok(events) => Ok(events),
            Err(Error::Api(status)) if status.code == 410 => Err(Broken::Gone),
            Err(error) => Err(Self::refused(error)),
        }
    }

    /// Servers answer 404 for kinds that are not installed; while they do not know all of them
    /// yet, 503.
    fn refused(error: Error) -> Broken {
        match error {
            Error::Api(status) if status.code == 404 && !F::OPTIONAL_VERSIONS.is_empty() => {
                Broken::NoSuchVersion
            }
            error => error.into(),
        }
    }

    /// The next event; `None` when the server has ended the watch.
    async fn next(&self, events: &mut Events) -> Result<Option<Event<F::Object>>, Broken> {
        let next = tokio::select! {
            next = timeout(SILENCE, events.next()) => next.map_err(|_| Broken::Silent)?,
            () = self.changes.closed() => return Err(Broken::Ended),
        };
        let event = next?;
        if event.is_some() {
            self.reporter.heard();
        }
        Ok(event)
    }

    fn request(&self) -> Request {
        match F::OPTIONAL_VERSIONS.get(self.asked_version) {
            Some(version) => Request::new(format!("/apis/{version}/{}", F::PLURAL)),
            None => {
                let namespace = F::ONLY.map(|_| self.reader.root_namespace());
                Request::new(<F::Object as kube::Resource>::url_path(&(), namespace))
            }
        }
    }

    fn read(&mut self, arrival: Arrival<F::Object>) -> (Key, Verdict<F>) {
        self.read += 1;
        if self.read.is_multiple_of(SWEEP) {
            self.reader.sweep();
        }
        self.reader.read(arrival)
    }

    async fn send(&self, delta: Delta<F>) -> Result<(), Broken> {
        self.changes.send(F::change(delta)).await.map_err(|_| Broken::Ended)
    }
}

fn parameters<F: Kind>() -> WatchParams {
    let seconds = rand::random_range(WATCH_SECONDS);
    let field_selector = named::<F>();
    WatchParams { timeout: Some(seconds), field_selector, ..WatchParams::default() }
}

/// Selects the objects that are asked for, where that is not all.
fn named<F: Kind>() -> Option<String> {
    F::ONLY.map(|name| format!("metadata.name={name}"))
}

fn error_of(status: Box<Status>) -> Broken {
    if status.code == 410 { Broken::Gone } else { Broken::Failed(Error::Api(status)) }
}
