//! Who of a node's agents is in charge of the pins, and who comes next.
//!
//! Two locks on directories of the pins (flock(2): the kernel takes them back from a process
//! however it ends):
//!
//! | lock on | holder |
//! |---|---|
//! | `links` | *next*: an agent from its start until it has taken over the pods |
//! | the root | *in charge*: writes maps, pins and the pods' namespaces |
//!
//! An agent is next before it is in charge, so that nobody can overtake one that stands by, and
//! whoever leaves can see that it has a successor, and when that has taken over.
//!
//! A lock is worth something as long as others look for it at the same directory. Where somebody
//! took that away, the one in charge makes another and locks it, and lets go of the old one after:
//! whoever waited for that sees then that it is none any more.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::sync::oneshot;

use super::{
    error::{CaptureError, Step},
    pins::Pins,
};

/// The place of an agent that is about to take over; one agent has it at a time.
#[derive(Debug)]
pub(super) struct Next {
    pins: PathBuf,
    lock: Flock<File>,
}

/// The right to change what agents share.
#[derive(Debug)]
pub(super) struct InCharge {
    pins: PathBuf,
    lock: Flock<File>,
}

impl Next {
    /// Takes the place, without waiting for it.
    ///
    /// # Errors
    /// When another agent has it.
    pub(super) fn claim(pins: &Pins) -> Result<Self, CaptureError> {
        let pins = pins.root().to_owned();
        match try_lock(&line(&pins))? {
            Some(lock) => Ok(Self { pins, lock }),
            None => Err(CaptureError::LineIsFull { path: pins }),
        }
    }

    /// In charge, unless another agent is.
    pub(super) fn try_in_charge(&self) -> Result<Option<InCharge>, CaptureError> {
        let lock = try_lock(&self.pins)?;
        Ok(lock.map(|lock| InCharge { pins: self.pins.clone(), lock }))
    }

    /// In charge, once no other agent is.
    pub(super) async fn in_charge(&mut self) -> Result<InCharge, CaptureError> {
        loop {
            let lock = lock(&self.pins).await?;
            if is_at(&lock, &self.pins) {
                return Ok(InCharge { pins: self.pins.clone(), lock });
            }
            self.renew()?;
        }
    }

    /// Takes the place anew where the directory is another one by now.
    pub(super) fn renew(&mut self) -> Result<(), CaptureError> {
        renew(&mut self.lock, &line(&self.pins))
    }
}

impl InCharge {
    /// Takes charge anew where the directory is another one by now.
    ///
    /// # Errors
    /// When another agent was faster.
    pub(super) fn renew(&mut self) -> Result<(), CaptureError> {
        renew(&mut self.lock, &self.pins)
    }

    /// Whether an agent is there that takes over when this one lets go. To be asked by one that
    /// is no longer [`Next`] itself.
    pub(super) fn has_successor(&self) -> Result<bool, CaptureError> {
        Ok(try_lock(&line(&self.pins))?.is_none())
    }

    /// Lets the successor take over, and waits until it has. Comes back where the successor ended
    /// before it had.
    pub(super) async fn hand_over(self) -> Result<Option<Self>, CaptureError> {
        let Self { pins, lock: in_charge } = self;
        drop(in_charge);
        drop(lock(&line(&pins)).await?);
        let lock = try_lock(&pins)?;
        Ok(lock.map(|lock| Self { pins, lock }))
    }
}

/// Both places at once, for whoever wants to be alone.
///
/// # Errors
/// When an agent has one of them.
pub(super) fn alone(pins: &Pins) -> Result<(Next, InCharge), CaptureError> {
    let in_use = || CaptureError::InUse { path: pins.root().to_owned() };
    let next = Next::claim(pins).map_err(|error| match error {
        CaptureError::LineIsFull { .. } => in_use(),
        error => error,
    })?;
    let in_charge = next.try_in_charge()?.ok_or_else(in_use)?;
    Ok((next, in_charge))
}

/// Locks the directory at `path`, if `lock` is on one that was there before.
fn renew(lock: &mut Flock<File>, path: &Path) -> Result<(), CaptureError> {
    if !is_at(lock, path) {
        let in_use = || CaptureError::InUse { path: path.to_owned() };
        *lock = try_lock(path)?.ok_or_else(in_use)?;
    }
    Ok(())
}

/// Whether `lock` is on the directory that is at `path` now.
fn is_at(lock: &Flock<File>, path: &Path) -> bool {
    let same = |locked: fs::Metadata, found: fs::Metadata| {
        (locked.dev(), locked.ino()) == (found.dev(), found.ino())
    };
    lock.metadata().is_ok_and(|locked| fs::metadata(path).is_ok_and(|found| same(locked, found)))
}

fn line(pins: &Path) -> PathBuf {
    pins.join("links")
}

fn open(directory: &Path) -> Result<File, CaptureError> {
    File::open(directory).step(format!("open {}", directory.display()))
}

fn try_lock(directory: &Path) -> Result<Option<Flock<File>>, CaptureError> {
    match Flock::lock(open(directory)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).step(format!("lock {}", directory.display())),
    }
}

/// Waits for the lock in a thread of its own: one of the runtime's could not be left behind when
/// the agent is told to end while it waits.
async fn lock(directory: &Path) -> Result<Flock<File>, CaptureError> {
    let file = open(directory)?;
    let (locked, wait) = oneshot::channel();
    thread::spawn(move || {
        let mut outcome = Flock::lock(file, FlockArg::LockExclusive);
        while let Err((file, Errno::EINTR)) = outcome {
            outcome = Flock::lock(file, FlockArg::LockExclusive);
        }
        // Where nobody waits any more, the lock goes with the answer.
        let _ = locked.send(outcome.map_err(|(_, error)| error));
    });
    let outcome = wait.await.unwrap_or(Err(Errno::ECANCELED));
    outcome.step(format!("lock {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    /// flock(2) is the same on every file system.
    fn pins() -> (TempDir, Pins) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("links")).unwrap();
        let pins = Pins::at(folder.path().to_owned());
        (folder, pins)
    }

    #[test]
    fn one_is_in_charge_one_is_next_and_a_third_is_refused() {
        let (_folder, pins) = pins();
        let first = Next::claim(&pins).unwrap();
        let in_charge = first.try_in_charge().unwrap().unwrap();
        let refused = Next::claim(&pins).unwrap_err();
        assert!(matches!(refused, CaptureError::LineIsFull { .. }), "it has not taken over yet");
        drop(first);
        assert!(!in_charge.has_successor().unwrap());
        let second = Next::claim(&pins).unwrap();
        assert!(second.try_in_charge().unwrap().is_none());
        assert!(in_charge.has_successor().unwrap());
        assert!(matches!(Next::claim(&pins).unwrap_err(), CaptureError::LineIsFull { .. }));
        assert!(matches!(alone(&pins).unwrap_err(), CaptureError::InUse { .. }));
        drop((in_charge, second));
        alone(&pins).unwrap();
    }

    #[tokio::test]
    async fn who_hands_over_waits_until_the_successor_has_taken_over() {
        let (_folder, pins) = pins();
        let first = Next::claim(&pins).unwrap();
        let leaving = first.try_in_charge().unwrap().unwrap();
        drop(first);
        let mut second = Next::claim(&pins).unwrap();
        let mut handing_over = Box::pin(leaving.hand_over());
        let coming = tokio::select! {
            coming = second.in_charge() => coming.unwrap(),
            _ = &mut handing_over => panic!("the second has not taken over yet"),
        };
        let early = timeout(Duration::from_millis(50), &mut handing_over).await;
        assert!(early.is_err(), "the second has not taken over yet");
        drop(second);
        assert!(handing_over.await.unwrap().is_none());
        assert!(!coming.has_successor().unwrap());
    }

    #[tokio::test]
    async fn a_successor_that_ends_half_way_leaves_the_charge_where_it_was() {
        let (_folder, pins) = pins();
        let first = Next::claim(&pins).unwrap();
        let leaving = first.try_in_charge().unwrap().unwrap();
        drop(first);
        let mut second = Next::claim(&pins).unwrap();
        let handing_over = tokio::spawn(leaving.hand_over());
        let coming = second.in_charge().await.unwrap();
        drop((coming, second));
        let back = handing_over.await.unwrap().unwrap();
        assert!(back.is_some(), "nobody else is in charge");
    }

    /// Somebody else's doing.
    fn replace_directories(pins: &Pins) {
        fs::remove_dir_all(pins.root()).unwrap();
        fs::create_dir_all(line(pins.root())).unwrap();
    }

    #[test]
    fn who_comes_to_directories_made_anew_finds_who_is_in_charge() {
        let (_folder, pins) = pins();
        let (first, mut in_charge) = alone(&pins).unwrap();
        drop(first);
        replace_directories(&pins);
        in_charge.renew().unwrap();
        assert!(Next::claim(&pins).unwrap().try_in_charge().unwrap().is_none());
    }

    #[test]
    fn who_finds_another_in_directories_made_anew_is_not_in_charge_any_more() {
        let (_folder, pins) = pins();
        let (_first, mut former) = alone(&pins).unwrap();
        replace_directories(&pins);
        let _other = alone(&pins).unwrap();
        assert!(matches!(former.renew().unwrap_err(), CaptureError::InUse { .. }));
    }

    #[tokio::test]
    async fn who_waits_goes_on_waiting_when_the_directories_are_made_anew() {
        let (_folder, pins) = pins();
        let (first, mut leaving) = alone(&pins).unwrap();
        drop(first);
        let mut second = Next::claim(&pins).unwrap();
        let mut coming = Box::pin(second.in_charge());
        assert!(timeout(Duration::from_millis(20), &mut coming).await.is_err());
        replace_directories(&pins);
        leaving.renew().unwrap();
        assert!(timeout(Duration::from_millis(50), &mut coming).await.is_err());
        assert!(leaving.has_successor().unwrap());
        drop(leaving);
        coming.await.unwrap();
    }
}
