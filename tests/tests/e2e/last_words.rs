//! What an application says right before its connection breaks: whoever is at the other end hears
//! it, as without a mesh.
//!
//! A socket that is closed with input unread is reset (RFC 9293 §3.6.1, RFC 1122 §4.2.2.13), right
//! behind what was written to it: redis that has too many clients, a mail server that knows the client
//! already, an HTTP/1.0 server that needs no more of the request.

use std::{io::ErrorKind, net::SocketAddr};

use anyhow::Context;
use sluice_tests::{OPAQUE, PATIENCE, Pod, TunnelLab, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// More than one or two are lost of so many where anything can overtake them.
const TRIES: usize = 100;
const LAST_WORDS: &str = "goodbye";

/// Client and server of each way a connection can go.
fn ways(lab: &TunnelLab) -> [(&'static str, &Pod, &Pod); 5] {
    [
        ("on one node", &lab.client, &lab.near),
        ("across nodes", &lab.client, &lab.far),
        ("into the mesh", &lab.outsider, &lab.far),
        ("out of the mesh", &lab.client, &lab.far_outsider),
        ("without the mesh", &lab.outsider, &lab.far_outsider),
    ]
}

/// Reads the first byte only, says its last words and breaks off.
async fn leave(mut stream: TcpStream) -> anyhow::Result<()> {
    within(PATIENCE, "the first byte", stream.read_u8()).await??;
    within(PATIENCE, "last words", stream.write_all(LAST_WORDS.as_bytes())).await??;
    Ok(())
}

/// Says `much` as far as that is wanted, and returns all that was heard.
async fn stay(stream: TcpStream, much: usize) -> anyhow::Result<(String, Option<ErrorKind>)> {
    let (mut read, mut write) = stream.into_split();
    let talking = async {
        // Broken off by the other end, where it is much.
        let _ = write.write_all(&vec![b'x'; much]).await;
    };
    let mut heard = Vec::new();
    let hearing = read.read_to_end(&mut heard);
    let (ended, ()) = within(PATIENCE, "the end", async { tokio::join!(hearing, talking) }).await?;
    Ok((String::from_utf8(heard)?, ended.err().map(|error| error.kind())))
}

#[tokio::test]
async fn they_are_heard_in_every_direction_and_then_the_connection_is_reset() -> anyhow::Result<()>
{
    let lab = TunnelLab::new()?;
    let _agents = lab.start_agents(&[]).await?;
    for (way, client, server) in ways(&lab) {
        let listener = server.listen(OPAQUE[0])?;
        let to = SocketAddr::new(server.ip(), OPAQUE[0]);
        for (much, server_leaves) in [(100, true), (100, false), (4 << 20, true), (4 << 20, false)]
        {
            for n in 0..TRIES {
                let both = async { tokio::try_join!(client.connect(to), listener.accept()) };
                let (from_client, (from_server, _)) = within(PATIENCE, "connect", both).await??;
                let (leaving, staying) = match server_leaves {
                    true => (from_server, from_client),
                    false => (from_client, from_server),
                };
                let (left, heard) = tokio::join!(leave(leaving), stay(staying, much));
                let what = format!("{way}, try {n}, {much} bytes, server leaves: {server_leaves}");
                left.with_context(|| what.clone())?;
                let (heard, ended) = heard.with_context(|| what.clone())?;
                assert_eq!(heard, LAST_WORDS, "{what}");
                // Who was told by a write may see no more than an end here.
                assert!(
                    much > 100 || ended == Some(ErrorKind::ConnectionReset),
                    "{what}: {ended:?}"
                );
            }
        }
    }
    Ok(())
}
