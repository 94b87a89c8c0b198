//! Many dials in one client's name, quicker than the kernel gives back what it keeps of each: for a
//! minute it keeps the ports.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Instant,
};

use anyhow::{Context, ensure};
use sluice_tests::{Mesh, PATIENCE, Pod};
use socket2::{Domain, SockRef, Socket};

const CONNECTIONS: usize = 10_000;
/// Threads at either end that wait for one connection at a time. An emulated processor is spared
/// everything but the connections themselves: no event loop, no task for each.
const WORKERS: usize = 16;
/// How many sockets a worker has in hand: a process may often have no more than 1,024 files.
const SOCKETS: usize = 25;

/// Says with its one byte who closes first, and so keeps the port: itself, or the client.
fn answer(mut stream: TcpStream, server_closes: bool) -> io::Result<()> {
    stream.write_all(&[server_closes.into()])?;
    if !server_closes && stream.read(&mut [0])? > 0 {
        return Err(io::Error::other("the client said something"));
    }
    Ok(())
}

fn serve(listener: &TcpListener) {
    for server_closes in [true, false].into_iter().cycle() {
        let Ok((stream, _)) = listener.accept() else { return };
        // The client notices whatever goes wrong.
        drop(answer(stream, server_closes));
    }
}

fn ask(socket: Socket, to: SocketAddr) -> anyhow::Result<()> {
    let began = Instant::now();
    // connect() keeps to the one, read() to the other.
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&to.into()).context("connect")?;
    let mut stream = TcpStream::from(socket);
    let mut byte = [0];
    stream.read_exact(&mut byte).context("the answer")?;
    if byte == [1] {
        ensure!(stream.read(&mut byte)? == 0, "the server said more than it should");
    }
    ensure!(began.elapsed() < PATIENCE, "one connection took {:?}", began.elapsed());
    Ok(())
}

/// What one of the [`WORKERS`] does.
fn dial(client: &Pod, to: SocketAddr) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut sockets = Vec::new();
    for number in 0..CONNECTIONS / WORKERS {
        if sockets.is_empty() {
            sockets = client.tcp_sockets(SOCKETS, Domain::for_address(to))?;
        }
        let asked = ask(sockets.pop().expect("there are some"), to);
        asked.with_context(|| format!("connection {number}, {:?}", began.elapsed()))?;
    }
    Ok(())
}

#[tokio::test]
async fn ten_thousand_dials_from_one_client_to_one_port_are_all_answered() -> anyhow::Result<()> {
    let mesh = Mesh::new()?;
    // Capture is the matter here, so without spans and within the node.
    let _agent = mesh.start_agent(&mesh.a, &["--trace-sampling", "0"]).await?;
    let listener = mesh.near.listen(Mesh::TCP_TARGET)?.into_std()?;
    listener.set_nonblocking(false)?;
    // Of a port that is declared: the agent waits for nothing to be said before it dials.
    let [service, _] = mesh.service_ips(&mesh.near);
    let to = SocketAddr::new(service, Mesh::TCP);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| serve(&listener));
        }
        let workers = [(); WORKERS].map(|()| scope.spawn(|| dial(&mesh.client, to)));
        let dialled = workers.into_iter().try_for_each(|it| it.join().expect("it does not panic"));
        // Whoever waits for another connection is told that there will be none.
        SockRef::from(&listener).shutdown(Shutdown::Both)?;
        dialled
    })?;
    println!("{CONNECTIONS} connections in {:?}", began.elapsed());
    Ok(())
}
