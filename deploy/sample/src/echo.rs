//! A TCP echo: traffic that is no HTTP.

use tokio::{net::TcpListener, task::JoinSet};

/// Sends every byte back until `stop`.
pub(crate) async fn serve(listener: TcpListener, stop: impl Future<Output = ()>) {
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((mut stream, _)) => {
                    connections.spawn(async move {
                        let (mut read, mut write) = stream.split();
                        tokio::io::copy(&mut read, &mut write).await
                    });
                }
                Err(error) => eprintln!("cannot accept a connection: {error}"),
            },
            Some(_) = connections.join_next() => {}
            () = &mut stop => return,
        }
    }
}
