//! One end of a connection, which hears by itself and says what it is told to.

use std::{
    io,
    net::Shutdown,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    task::AbortHandle,
    time::sleep,
};

use super::{
    table::Server,
    text::{Speech, find},
};

/// How long a pause is: long enough that what follows is a segment of its own.
const PAUSE: Duration = Duration::from_millis(40);

/// How the other end ended what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Fin,
    Reset,
}

/// What came.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    pub(super) bytes: Vec<u8>,
    pub(super) end: Option<Ending>,
}

/// One end of a connection; the connection is closed with the last of these.
#[derive(Clone)]
pub(super) struct Wire(Arc<Inner>);

struct Inner {
    stream: Weak<TcpStream>,
    heard: Mutex<Heard>,
    acts: mpsc::UnboundedSender<Act>,
    has_spoken: AtomicBool,
    has_closed: AtomicBool,
    /// Counts what changes anywhere.
    changes: Changes,
    tasks: Mutex<Vec<AbortHandle>>,
}

enum Act {
    Say(Speech),
    Shut,
    Close,
}

/// Wakes who waits for something to have changed.
pub(super) type Changes = Arc<watch::Sender<u64>>;

impl Wire {
    /// Speaks on `stream`, in the manner of such a server.
    pub(super) fn new(
        stream: TcpStream,
        changes: &Changes,
        manner: Server,
    ) -> anyhow::Result<Self> {
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        let stream = Arc::new(stream);
        let (acts, asked) = mpsc::unbounded_channel();
        let wire = Self(Arc::new(Inner {
            stream: Arc::downgrade(&stream),
            heard: Mutex::default(),
            acts,
            has_spoken: AtomicBool::new(false),
            has_closed: AtomicBool::new(false),
            changes: changes.clone(),
            tasks: Mutex::default(),
        }));
        let reader = tokio::spawn(read(stream.clone(), Arc::downgrade(&wire.0), manner));
        let reader = reader.abort_handle();
        let writer = tokio::spawn(write(stream, asked, reader.clone())).abort_handle();
        *locked(&wire.0.tasks) = vec![reader, writer];
        Ok(wire)
    }

    /// Looks at what came so far.
    pub(super) fn heard<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        look(&locked(&self.0.heard))
    }

    /// How the other end ended, if it did.
    pub(super) fn ending(&self) -> Option<Ending> {
        self.heard(|heard| heard.end)
    }

    /// Sends, behind what is being sent.
    pub(super) fn say(&self, what: &Speech) {
        self.0.has_spoken.store(true, Relaxed);
        self.act(Act::Say(what.clone()));
    }

    /// Ends the sending half, behind what is being sent.
    pub(super) fn shut(&self) {
        self.act(Act::Shut);
    }

    /// Closes, behind what is being sent.
    pub(super) fn close(&self) {
        self.act(Act::Close);
        self.closed();
    }

    /// Closes with a reset, whatever is being sent.
    pub(super) fn reset(&self) {
        if let Some(stream) = self.0.stream.upgrade() {
            let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
        }
        self.0.abandon();
        self.closed();
    }

    /// Whether this end has closed.
    pub(super) fn is_closed(&self) -> bool {
        self.0.has_closed.load(Relaxed)
    }

    /// Whether nothing more will come.
    pub(super) fn is_over(&self) -> bool {
        self.is_closed() || self.ending().is_some()
    }

    fn act(&self, act: Act) {
        // One that has ended already does nothing any more.
        let _ = self.0.acts.send(act);
    }

    fn closed(&self) {
        self.0.has_closed.store(true, Relaxed);
        self.0.changes.send_modify(|count| *count += 1);
    }
}

impl Inner {
    fn abandon(&self) {
        locked(&self.tasks).iter().for_each(AbortHandle::abort);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read(stream: Arc<TcpStream>, wire: Weak<Inner>, manner: Server) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match stream.readable().await {
            Ok(()) => stream.try_read(&mut buffer),
            Err(error) => Err(error),
        };
        let Some(wire) = wire.upgrade().map(Wire) else { return };
        let is_enough = {
            let mut heard = locked(&wire.0.heard);
            match read {
                Ok(0) => heard.end = Some(Ending::Fin),
                Ok(read) => heard.bytes.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => heard.end = Some(Ending::Reset),
            }
            manner == Server::HeadsAlone && find(&heard.bytes, b"\r\n\r\n").is_some()
        };
        let (has_spoken, has_ended) = (wire.0.has_spoken.load(Relaxed), wire.is_over());
        match manner {
            Server::OneAnswer if has_spoken => wire.close(),
            Server::OneAnswerReset if has_spoken => wire.reset(),
            Server::OneConnection if has_ended => wire.close(),
            _ => {}
        }
        wire.0.changes.send_modify(|count| *count += 1);
        if is_enough || has_ended {
            return;
        }
    }
}

async fn write(
    stream: Arc<TcpStream>,
    mut asked: mpsc::UnboundedReceiver<Act>,
    reader: AbortHandle,
) {
    while let Some(act) = asked.recv().await {
        match act {
            Act::Say(what) => {
                // The other end may be gone, and what it said be there to be heard all the same.
                let _ = say(&stream, &what).await;
            }
            Act::Shut => {
                let _ = SockRef::from(&*stream).shutdown(Shutdown::Write);
            }
            Act::Close => {
                reader.abort();
                return;
            }
        }
    }
}

async fn say(stream: &TcpStream, Speech(pieces): &Speech) -> io::Result<()> {
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            // What is two segments can be told only by the time between.
            sleep(PAUSE).await;
        }
        let mut rest = &piece[..];
        while !rest.is_empty() {
            stream.writable().await?;
            match stream.try_write(rest) {
                Ok(wrote) => rest = &rest[wrote..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
