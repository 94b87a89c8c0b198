//! Uploads: requests with one long body each.

use std::time::Instant;

use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use crate::{
    http1,
    load::kept,
    round::Round,
    table::Figure,
    watch::{Line, Watch},
};

/// What is written at once.
const BLOCK: usize = 256 << 10;

pub(crate) async fn measure(round: &Round<'_>, streams: usize) -> anyhow::Result<Vec<Figure>> {
    let each = round.bytes / streams as u64;
    let opened = kept::open(round, streams).await?;
    let watch = Watch::of(streams);
    let cpu = round.cpu()?;
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for (number, stream) in opened.into_iter().enumerate() {
        clients.spawn(client(stream, watch.line(number), each));
    }
    round.gather(&watch, clients).await?;
    let took = began.elapsed().as_secs_f64();
    let cpu = (round.cpu()? - cpu).as_secs_f64();
    let gigabytes = (each * streams as u64) as f64 / 1e9;
    Ok(vec![Figure::new("GB/s", gigabytes / took), Figure::new("CPU a GB (s)", cpu / gigabytes)])
}

async fn client(mut stream: TcpStream, line: Line, bytes: u64) -> anyhow::Result<()> {
    line.is_on(&stream);
    line.begin();
    let upload = async {
        stream.write_all(http1::upload(bytes).as_bytes()).await?;
        let block = vec![0xa5; BLOCK];
        let mut left = bytes;
        while left > 0 {
            let next = left.min(BLOCK as u64);
            stream.write_all(&block[..next as usize]).await?;
            left -= next;
            line.moved();
        }
        http1::answered(&mut stream, &mut Vec::new()).await
    };
    upload.await.map_err(|error| line.failed(error))?;
    line.end();
    Ok(())
}
