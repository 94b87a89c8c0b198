//! Plays one row: clients and a server that do what it says, and what each of them heard.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use sluice_tests::{PATIENCE, Pod, within};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    table::{Differs, Does, Row, Server, Servers, Step, Who},
    text::{Speech, count, find},
    trace,
    wire::{Changes, Ending, Heard, Wire},
};

/// How long connections are given to end once a row cannot go on.
const AFTERMATH: Duration = Duration::from_secs(1);
/// As much of the end of what was said must have come for all of it to have.
const LAST: usize = 4;

/// What each end heard, and how far the row came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Transcript {
    /// By `client 1`, `server 1` and so on, in the order in which they were connected. How the other
    /// end ended is a part of it where the row asks for it, and where it did not go on.
    pub(super) ends: BTreeMap<String, Vec<u8>>,
    /// Why the row did not go on.
    pub(super) stopped: Option<String>,
}

/// Why a row does not go on.
struct Stopped(&'static str);

const NOBODY: Stopped = Stopped("the server has not been asked");

struct Stage<'a> {
    row: &'a Row,
    from: &'a Pod,
    to: SocketAddr,
    clients: BTreeMap<usize, End>,
    servers: Arc<Mutex<Vec<End>>>,
    /// The server's connection on which each client was heard last, from 0.
    asked: BTreeMap<usize, usize>,
    changes: Changes,
    changed: watch::Receiver<u64>,
    /// Whose end is asked for, by name, and whether it matters how they ended.
    asked_ends: BTreeMap<String, bool>,
}

/// One end of a connection.
struct End {
    wire: Wire,
    /// How much of what it heard was waited for, without what the mesh adds.
    heard: usize,
    /// What it said since the other end was known to have heard everything.
    said: Vec<u8>,
}

impl End {
    fn new(wire: Wire) -> Self {
        Self { wire, heard: 0, said: Vec::new() }
    }

    /// Goes on from where `ending` says that the last of what was waited for is in what came since.
    fn hears(&mut self, ending: impl Fn(&[u8]) -> Option<usize>) -> Option<()> {
        let heard = self.wire.heard(|heard| trace::without_context(&heard.bytes));
        self.heard += ending(heard.get(self.heard..)?)?;
        Some(())
    }
}

/// The end of `news`, if they are all of `said`: its last bytes, as many times as they are there.
fn all_of(said: &[u8], news: &[u8]) -> Option<usize> {
    let last = &said[said.len().saturating_sub(LAST)..];
    let all = news.ends_with(last) && count(news, last) >= count(said, last);
    all.then_some(news.len())
}

/// Plays `row` between clients in `from` that dial `to`, and a server at `listener`.
pub(super) async fn play(
    row: &Row,
    from: &Pod,
    to: SocketAddr,
    listener: TcpListener,
) -> anyhow::Result<Transcript> {
    let (changes, changed) = watch::channel(0);
    let changes = Arc::new(changes);
    let servers = Arc::<Mutex<Vec<End>>>::default();
    let accepting = accept(listener, servers.clone(), changes.clone(), row.server);
    let _accepting = Abort(tokio::spawn(accepting));
    let mut stage = Stage {
        row,
        from,
        to,
        clients: BTreeMap::new(),
        servers,
        asked: BTreeMap::new(),
        changes,
        changed,
        asked_ends: BTreeMap::new(),
    };
    for (number, step) in row.steps.iter().enumerate() {
        if let Err(Stopped(why)) = stage.step(step).await? {
            stage.aftermath().await;
            let stopped = format!("step {} of {}: {why}", number + 1, row.steps.len());
            return Ok(stage.transcript(Some(stopped)));
        }
    }
    Ok(stage.transcript(None))
}

/// A task that ends with whoever holds this.
struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Accepts connections, in the manner of such a server.
async fn accept(
    listener: TcpListener,
    servers: Arc<Mutex<Vec<End>>>,
    changes: Changes,
    manner: Server,
) {
    let mut changed = changes.subscribe();
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(wire) = Wire::new(stream, &changes, manner) else { continue };
        locked(&servers).push(End::new(wire.clone()));
        changes.send_modify(|count| *count += 1);
        while manner == Server::OneConnection && !wire.is_over() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

fn locked(servers: &Mutex<Vec<End>>) -> MutexGuard<'_, Vec<End>> {
    servers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage<'_> {
    async fn step(&mut self, Step { who, does }: &Step) -> anyhow::Result<Result<(), Stopped>> {
        if let Who::Client(number) = *who
            && !self.clients.contains_key(&number)
        {
            let connect = within(PATIENCE, "a connection", self.from.connect(self.to)).await?;
            let connected = connect.with_context(|| format!("could not connect to {}", self.to))?;
            let wire = Wire::new(connected, &self.changes, Server::Plain)?;
            self.clients.insert(number, End::new(wire));
        }
        Ok(match does {
            Does::Say { what, heard } => self.say(*who, what, *heard).await,
            Does::Hear(what) => self.hear(*who, what).await,
            Does::HearEnd { how } => self.hear_end(*who, *how).await,
            Does::Connect => Ok(()),
            Does::Shut | Does::Close | Does::Reset => self.end(*who, does),
        })
    }

    async fn say(&mut self, who: Who, what: &Speech, heard: bool) -> Result<(), Stopped> {
        let said = self.with(who, |end| {
            end.said.extend(what.bytes());
            end.wire.say(what);
            end.said.clone()
        });
        let said = said.ok_or(NOBODY)?;
        if !heard {
            return Ok(());
        }
        let all = |end: &mut End| end.hears(|news| all_of(&said, news));
        match who {
            Who::Client(client) => self.heard_by(Who::Server(client), all).await?,
            Who::Server(client) => self.heard_by(Who::Client(client), all).await?,
        }
        self.with(who, |end| end.said.clear());
        Ok(())
    }

    async fn hear(&mut self, who: Who, what: &[u8]) -> Result<(), Stopped> {
        let contains = |end: &mut End| end.hears(|news| find(news, what).map(|at| at + what.len()));
        self.heard_by(who, contains).await?;
        let speaker = match who {
            Who::Client(client) => Who::Server(client),
            Who::Server(client) => Who::Client(client),
        };
        self.with(speaker, |end| end.said.clear());
        Ok(())
    }

    /// Waits until `who`, whichever connection a server may have for it, has heard what `look` finds.
    async fn heard_by(
        &mut self,
        who: Who,
        look: impl Fn(&mut End) -> Option<()>,
    ) -> Result<(), Stopped> {
        let (Who::Client(client) | Who::Server(client)) = who;
        let look = |stage: &mut Self| match who {
            Who::Client(_) => stage.with(who, &look).flatten(),
            Who::Server(_) => {
                let number =
                    locked(&stage.servers).iter_mut().position(|end| look(end).is_some())?;
                stage.asked.insert(client, number);
                Some(())
            }
        };
        let was_over = self.is_over(client);
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Looked at first: what comes until the rest is looked at counts.
            let is_over = self.is_over(client);
            if look(self).is_some() {
                return Ok(());
            }
            let servers_are_over = locked(&self.servers).iter().all(|end| end.wire.is_over());
            let nobody_is_left = match who {
                Who::Client(_) => is_over,
                Who::Server(_) => is_over && !was_over && servers_are_over,
            };
            if nobody_is_left {
                return Err(Stopped("the connection ended"));
            }
            if self.is_told_otherwise(client) {
                return Err(Stopped("the client hears something else"));
            }
            if timeout_at(deadline, self.changed.changed()).await.is_err() {
                return Err(Stopped("it is not heard"));
            }
        }
    }

    fn is_over(&self, client: usize) -> bool {
        self.clients.get(&client).is_some_and(|end| end.wire.is_over())
    }

    /// Whether a client has heard what it was to hear in place of what the row waits for.
    fn is_told_otherwise(&self, client: usize) -> bool {
        let Some(differs) = &self.row.differs else { return false };
        let stopped = Some(String::new());
        differs.is_for(&format!("client {client}")) && differs.fits(&self.transcript(stopped).ends)
    }

    async fn hear_end(&mut self, who: Who, how: bool) -> Result<(), Stopped> {
        let (Who::Client(client) | Who::Server(client)) = who;
        let name = self.name(who).ok_or(NOBODY)?;
        self.asked_ends.insert(name, how);
        let ended = |stage: &mut Self| {
            if stage.with(who, |end| end.wire.ending()).flatten().is_some() {
                return Some(Ok(()));
            }
            let told = stage.is_told_otherwise(client);
            told.then_some(Err(Stopped("the client hears something else")))
        };
        self.within(PATIENCE, ended).await.unwrap_or(Err(Stopped("no end is heard")))
    }

    fn end(&mut self, who: Who, does: &Does) -> Result<(), Stopped> {
        let ended = self.with(who, |end| match does {
            Does::Shut => end.wire.shut(),
            Does::Close => end.wire.close(),
            _ => end.wire.reset(),
        });
        ended.ok_or(NOBODY)
    }

    async fn within<T>(
        &mut self,
        time: Duration,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(found) = look(self) {
                return Some(found);
            }
            timeout_at(deadline, self.changed.changed()).await.ok()?.ok()?;
        }
    }

    /// Gives connections the time to end, after one of them did.
    async fn aftermath(&mut self) {
        let is_over = |stage: &mut Self| {
            let clients = stage.clients.values().all(|end| end.wire.is_over());
            let servers = locked(&stage.servers).iter().all(|end| end.wire.is_over());
            let fits =
                |differs: &Differs| differs.fits(&stage.transcript(Some(String::new())).ends);
            let all_over = clients && servers && stage.row.differs.is_none();
            (all_over || stage.row.differs.as_ref().is_some_and(fits)).then_some(())
        };
        let time = if self.row.differs.is_some() { PATIENCE } else { AFTERMATH };
        self.within(time, is_over).await;
    }

    /// Does something with an end, if it is there.
    fn with<T>(&mut self, who: Who, work: impl FnOnce(&mut End) -> T) -> Option<T> {
        match who {
            Who::Client(number) => self.clients.get_mut(&number).map(work),
            Who::Server(client) => {
                let number = self.asked.get(&client).copied().unwrap_or(0);
                locked(&self.servers).get_mut(number).map(work)
            }
        }
    }

    fn name(&self, who: Who) -> Option<String> {
        Some(match who {
            Who::Client(number) => format!("client {number}"),
            Who::Server(client) => format!("server {}", self.asked.get(&client)? + 1),
        })
    }

    fn transcript(&self, stopped: Option<String>) -> Transcript {
        let mut ends = BTreeMap::new();
        let servers = locked(&self.servers);
        let clients = self.clients.iter().map(|(number, end)| (format!("client {number}"), end));
        let servers =
            servers.iter().enumerate().map(|(number, end)| (format!("server {}", number + 1), end));
        for (name, end) in clients.chain(servers) {
            let Heard { bytes, end: ended } = end.wire.heard(Heard::clone);
            let is_client = name.starts_with("client");
            let mut heard = match !is_client && !self.row.traced {
                true => trace::without_context(&bytes),
                false => bytes,
            };
            let asked = self.asked_ends.get(&name).copied();
            match (ended, asked) {
                (Some(_), Some(false)) => heard.extend(b"[end]"),
                (Some(Ending::Fin), Some(true)) => heard.extend(b"[FIN]"),
                (Some(Ending::Reset), Some(true)) => heard.extend(b"[RST]"),
                // Of one that was made ahead and never used nobody knows.
                (Some(_), None) if stopped.is_some() && (is_client || !heard.is_empty()) => {
                    heard.extend(b"[end]");
                }
                _ => {}
            }
            if !heard.is_empty() || is_client {
                ends.insert(name, heard);
            }
        }
        match self.row.servers {
            Servers::Apart => {}
            Servers::Together => {
                let (clients, servers): (BTreeMap<_, _>, BTreeMap<_, _>) =
                    ends.into_iter().partition(|(name, _)| name.starts_with("client"));
                ends = clients;
                let all = servers.into_values().collect::<Vec<_>>().concat();
                ends.insert("servers".into(), all);
            }
            Servers::Whatever => ends.retain(|name, _| name.starts_with("client")),
        }
        Transcript { ends, stopped }
    }
}
