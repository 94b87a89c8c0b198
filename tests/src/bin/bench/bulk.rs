//! One stream of bytes that are not HTTP.

use std::time::Instant;

use anyhow::ensure;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    figure,
    table::Figure,
    world::{SINK, Way, World},
};

pub(crate) async fn measure(world: &World, way: Way, bytes: u64) -> anyhow::Result<Vec<Figure>> {
    let mut stream = world.connect(way, SINK).await?;
    let block = vec![0xa5; 256 << 10];
    let cpu = world.agents_cpu()?;
    let began = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let next = left.min(block.len() as u64);
        stream.write_all(&block[..next as usize]).await?;
        left -= next;
    }
    stream.shutdown().await?;
    let arrived = stream.read_u64().await?;
    let took = began.elapsed().as_secs_f64();
    ensure!(arrived == bytes, "{arrived} of {bytes} bytes arrived");
    let cpu = (world.agents_cpu()? - cpu).as_secs_f64();
    let gigabytes = bytes as f64 / 1e9;
    Ok(vec![
        figure("Opaque stream (GB/s)", gigabytes / took),
        figure("  agents' CPU a GB (s)", cpu / gigabytes),
    ])
}
