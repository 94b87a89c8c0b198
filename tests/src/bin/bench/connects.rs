//! Short connections, one after another: connect, one byte, answer, close.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    figure,
    table::Figure,
    world::{SINK, Way, World},
};

pub(crate) async fn measure(
    world: &World,
    way: Way,
    round: Duration,
) -> anyhow::Result<Vec<Figure>> {
    let cpu = world.agents_cpu()?;
    let began = Instant::now();
    let mut connections = 0_u32;
    while began.elapsed() < round {
        let mut stream = world.connect(way, SINK).await?;
        stream.write_all(&[0xa5]).await?;
        stream.shutdown().await?;
        stream.read_u64().await?;
        connections += 1;
    }
    let took = began.elapsed().as_secs_f64();
    let cpu = (world.agents_cpu()? - cpu).as_secs_f64();
    let connections = f64::from(connections);
    Ok(vec![
        figure("Short connections a second, one by one", connections / took),
        figure("  agents' CPU a connection (µs)", 1e6 * cpu / connections),
    ])
}
