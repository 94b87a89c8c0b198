//! Many dials in one client's name within the minute that the kernel keeps their ports.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use anyhow::{Context, ensure};
use sluice_tests::{Mesh, PATIENCE, Pod, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const CONNECTIONS: u16 = 10_000;
const WORKERS: u16 = 16;

/// Answers one byte with another. Whichever end the byte names closes first and keeps the port.
async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let server_closes = stream.read_u8().await? == 1;
    stream.write_u8(0).await?;
    if !server_closes && stream.read(&mut [0]).await? > 0 {
        return Err(std::io::Error::other("the client said more than it should"));
    }
    Ok(())
}

async fn serve(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        // The client notices whatever goes wrong.
        connections.spawn(async { drop(answer(stream).await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn ask(client: &Pod, to: SocketAddr, server_closes: bool) -> anyhow::Result<()> {
    let mut stream = client.connect(to).await.context("connect")?;
    stream.write_u8(server_closes.into()).await?;
    stream.read_u8().await.context("the answer")?;
    if server_closes {
        ensure!(stream.read(&mut [0]).await? == 0, "the server said more than it should");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_dials_from_one_client_to_one_port_are_all_answered() -> anyhow::Result<()> {
    let mesh = Arc::new(Mesh::new()?);
    // Capture is the matter here, so without spans and within the node.
    let _agent = mesh.start_agent(&mesh.a, &["--trace-sampling", "0"]).await?;
    let mut serving = JoinSet::new();
    serving.spawn(serve(mesh.near.listen(Mesh::TCP_TARGET)?));
    let to = SocketAddr::new(mesh.near.ip(), Mesh::TCP_TARGET);
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let mesh = mesh.clone();
        workers.spawn(async move {
            for number in (worker..CONNECTIONS).step_by(WORKERS.into()) {
                let asked = ask(&mesh.client, to, number % 2 == 0);
                let asked = within(PATIENCE, "one connection", asked).await.flatten();
                asked.with_context(|| format!("connection {number}, {:?}", began.elapsed()))?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    println!("{CONNECTIONS} connections in {:?}", began.elapsed());
    Ok(())
}
