//! Listeners that anybody may reach: the admin servers' and the CA's.
//!
//! Enters: an address, and how many may be served at a time. Leaves: connections, each with a
//! place that is fair among the addresses they come from. It knows no protocol.

mod bind;
mod guests;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

pub(crate) use guests::{Bounds, Guest, Source};

use guests::Guests;

/// The pause after a failed accept: out of file descriptors, the next may fare better.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections within bounds.
pub(crate) struct Listener {
    what: &'static str,
    listener: TcpListener,
    guests: Arc<Guests>,
}

impl Listener {
    /// Listens on `address` for `what`. `[::]` is every address there is, also where there is no
    /// IPv6. To be called where a runtime is.
    pub(crate) fn bind(
        what: &'static str,
        address: SocketAddr,
        bounds: Bounds,
    ) -> io::Result<Self> {
        let listener = bind::bind(address)?;
        Ok(Self { what, listener, guests: Guests::new(bounds) })
    }

    /// The next connection, and its place.
    pub(crate) async fn accept(&self) -> (TcpStream, Guest) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => return (stream, self.guests.admit(Source::of(from.ip()))),
                Err(error) => {
                    tracing::warn!(server = self.what, %error, "could not accept a connection");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Where it listens.
    #[cfg(test)]
    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
}
