//! One row in one column, once.

use std::{future::Future, io, pin::pin, time::Duration};

use anyhow::Context;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    column::Column,
    row::Row,
    watch::{BOUND, Line, Watch},
    world::World,
};

/// How often clients are looked at.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) struct Round<'a> {
    pub(crate) world: &'a World,
    pub(crate) column: Column,
    pub(crate) row: Row,
    /// How long clients go on.
    pub(crate) lasts: Duration,
    /// What an upload moves, all streams together.
    pub(crate) bytes: u64,
    /// Whether somebody wants to look at the world when this fails.
    pub(crate) pause: bool,
}

impl Round<'_> {
    /// CPU time that the carriers have used so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.world.carriers().cpu()
    }

    /// Waits for every client, and returns what they bring, in no order.
    ///
    /// # Errors
    /// As soon as one fails, or hangs. What was open is open until that was looked at.
    pub(crate) async fn gather<T: 'static>(
        &self,
        watch: &Watch,
        mut clients: JoinSet<anyhow::Result<T>>,
    ) -> anyhow::Result<Vec<T>> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut brought = Vec::with_capacity(clients.len());
        let error = loop {
            tokio::select! {
                client = clients.join_next() => match client {
                    None => return Ok(brought),
                    Some(client) => match client.map_err(Into::into).flatten() {
                        Ok(one) => brought.push(one),
                        Err(error) => break error,
                    },
                },
                _ = looks.tick() => if let Some(stalled) = watch.stalled() {
                    break anyhow::Error::msg(stalled);
                },
            }
        };
        Err(self.failed(error).await)
    }

    /// Opens what the clients use, of which `line` keeps notes.
    ///
    /// # Errors
    /// When it fails, or takes too long.
    pub(crate) async fn open<T>(
        &self,
        line: &Line,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        // Kept until a failure was looked at.
        let mut work = pin!(work);
        let done = timeout(BOUND, &mut work).await;
        let done = done.with_context(|| format!("not open within {BOUND:?}")).flatten();
        match done {
            Ok(done) => Ok(done),
            Err(error) => Err(self.failed(line.failed(error)).await),
        }
    }

    /// Says where `error` happened and who was part of it, and lets somebody look.
    async fn failed(&self, error: anyhow::Error) -> anyhow::Error {
        let error = error.context(format!("{}, {}", self.column, self.row.name()));
        let carriers = self.world.carriers();
        eprintln!("{error:#}");
        eprintln!("Processes in between: {:?}; the lab: {}", carriers.ids(), self.world.lab());
        if self.pause {
            eprintln!("Everything is left as it is until Enter.");
            let look = spawn_blocking(|| io::stdin().read_line(&mut String::new()));
            // Whether a line or the end, or nothing to read from: somebody has looked.
            let _ = look.await;
        }
        error
    }
}
