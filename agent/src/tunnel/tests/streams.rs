//! Bytes, ends and resets.

use futures_util::future::join_all;

use super::*;

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let mut bench = Bench::new().await;
    let (mut client, mut server) = bench.stream().await;
    client.shutdown().await.unwrap();
    ends(&mut server).await;
    exchange(&mut server, &mut client, b"still talking").await;
    assert_eq!(
        client.write(b"x").await.unwrap_err().kind(),
        io::ErrorKind::BrokenPipe,
        "written after the end"
    );
    server.shutdown().await.unwrap();
    ends(&mut client).await;

    let (mut client, mut server) = bench.stream().await;
    server.shutdown().await.unwrap();
    ends(&mut client).await;
    exchange(&mut client, &mut server, b"still talking").await;
    client.shutdown().await.unwrap();
    ends(&mut server).await;
}

#[tokio::test]
async fn an_aborted_or_dropped_stream_is_a_reset_at_the_other_end() {
    let mut bench = Bench::new().await;
    let (client, mut server) = bench.stream().await;
    client.abort();
    is_reset(&mut server).await;
    let (mut client, server) = bench.stream().await;
    server.abort();
    is_reset(&mut client).await;
    let (client, mut server) = bench.stream().await;
    drop(client);
    is_reset(&mut server).await;
    let (mut client, server) = bench.stream().await;
    drop(server);
    is_reset(&mut client).await;
    // One stream's end is no other's.
    let (mut client, mut server) = bench.stream().await;
    exchange(&mut client, &mut server, b"hello").await;
    assert_eq!(bench.server.connections(), 1);
}

#[tokio::test]
async fn a_reset_that_waits_until_all_is_sent_overtakes_nothing() {
    let mut bench = Bench::new().await;
    for ended in [false, true] {
        let (mut client, mut server) = bench.stream().await;
        // More than the window and what waits here take at once.
        let (length, mut heard) = (3 * LARGEST_WINDOW as usize, Vec::new());
        let leaving = async {
            client.write_all(&vec![7; length]).await.unwrap();
            if ended {
                client.shutdown().await.unwrap();
            }
            client.sent().await;
            client.abort();
        };
        let ((), end) = tokio::join!(leaving, server.read_to_end(&mut heard));
        assert_eq!(heard.len(), length);
        assert!(ended || end.unwrap_err().kind() == io::ErrorKind::ConnectionReset);
        // After an end in order, the reset is there soon.
        let error = loop {
            if let Err(error) = server.write(&[0; 1024]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    }
}

#[tokio::test]
async fn any_number_of_streams_may_break_behind_their_last_words() {
    let mut bench = Bench::new().await;
    for _ in 0..150 {
        let (mut client, mut server) = bench.stream().await;
        client.write_all(b"words").await.unwrap();
        client.sent().await;
        client.abort();
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).await.unwrap_err();
        assert_eq!(heard, b"words");
    }
    assert_eq!(bench.server.connections(), 1, "all on one connection");
}

#[tokio::test]
async fn what_is_sent_is_not_waited_for_on_a_stream_that_was_reset() {
    let mut bench = Bench::new().await;
    let (mut client, server) = bench.stream().await;
    fill(&mut client).await;
    server.abort();
    client.sent().await;
    is_reset(&mut client).await;
}

#[tokio::test]
async fn a_reader_that_has_less_room_than_arrived_loses_nothing() {
    let mut bench = Bench::new().await;
    let (mut client, mut server) = bench.stream().await;
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    for _ in 0..5 {
        heard.push(server.read_u8().await.unwrap());
    }
    assert_eq!(heard, b"hello");
    ends(&mut server).await;
}

#[tokio::test]
async fn streams_of_a_connection_that_breaks_are_reset() {
    let mut bench = Bench::new().await;
    let (mut client, server) = bench.stream().await;
    let Bench { pool, mesh, .. } = bench;
    // A connection whose owner is gone at once, as when an agent is killed.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(mesh.server("order").await);
    let killed = async {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(stream).await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let _send = respond.send_response(Response::new(()), false).unwrap();
        poll_fn(|cx| Poll::Ready(connection.poll_closed(cx).is_ready())).await;
    };
    let opened = open(&pool, address, mesh.client().await);
    let (opened, ()) = tokio::join!(opened, killed);
    is_reset(&mut opened.unwrap()).await;
    // The other connection is another matter.
    server.abort();
    is_reset(&mut client).await;
}

/// Passes on what one connection's client sends to `server`, and what it gets, and returns the length of
/// each TLS record that the client sent.
async fn records(listener: TcpListener, server: SocketAddr) -> Vec<usize> {
    let (client, _) = listener.accept().await.unwrap();
    let server = TcpStream::connect(server).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = async { tokio::io::copy(&mut from_server, &mut to_client).await };
    let records = async {
        let mut lengths = Vec::new();
        // Type, version and length (RFC 8446 §5.1).
        let mut head = [0; 5];
        while from_client.read_exact(&mut head).await.is_ok() {
            let mut record = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
            from_client.read_exact(&mut record).await.unwrap();
            to_server.write_all(&head).await.unwrap();
            to_server.write_all(&record).await.unwrap();
            lengths.push(record.len());
        }
        lengths
    };
    tokio::select! {
        lengths = records => lengths,
        _ = answers => panic!("the server ended first"),
    }
}

#[tokio::test]
async fn frames_of_much_data_fill_their_records() {
    let mut bench = Bench::new().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (through, server) = (listener.local_addr().unwrap(), bench.server.address);
    let records = tokio::spawn(records(listener, server));
    let dial = || TcpStream::connect(through);
    let made = made(bench.mesh.client().await);
    let opened = bench.pool.open(key(server), connect_request(), dial, made);
    let (client, at_server) = tokio::join!(opened, bench.server.accept());
    let (mut client, mut at_server) = (client.unwrap(), at_server);
    let mut data = Bytes::from(vec![7; 16 << 20]);
    let sending = async {
        while !data.is_empty() {
            // As much as is read from a socket at once.
            let mut part = data.split_to(SEND_BUFFER.min(data.len()));
            while !part.is_empty() {
                poll_fn(|cx| client.poll_write_bytes(cx, &mut part)).await.unwrap();
            }
        }
        client.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let ((), heard_all) = tokio::join!(sending, at_server.read_to_end(&mut heard));
    assert_eq!(heard_all.unwrap(), 16 << 20);
    at_server.shutdown().await.unwrap();
    ends(&mut client).await;
    drop((client, bench.pool));
    let records = records.await.unwrap();
    // But for the edges of windows. Of frames that do not, every third would be.
    let short = records.iter().filter(|length| **length < 1000).count();
    assert!(10 * short < 3 * records.len(), "{short} of {} records are short", records.len());
}

/// Endless bytes of which each place tells itself from its neighbours.
struct Pattern {
    bytes: Bytes,
    place: usize,
}

impl Pattern {
    const CYCLE: usize = 251;
    const LONGEST: usize = 1 << 20;

    fn new() -> Self {
        let bytes = (0..Self::LONGEST + Self::CYCLE).map(|place| (place % Self::CYCLE) as u8);
        Self { bytes: bytes.collect(), place: 0 }
    }

    fn next(&mut self, length: usize) -> Bytes {
        let from = self.place % Self::CYCLE;
        self.place += length;
        self.bytes.slice(from..from + length)
    }
}

async fn send_pattern(stream: &Mutex<HboneStream>, total: usize) {
    let mut pattern = Pattern::new();
    while pattern.place < total {
        let mut part = pattern.next((64 << 10).min(total - pattern.place));
        while !part.is_empty() {
            let sent = poll_fn(|cx| stream.lock().unwrap().poll_write_bytes(cx, &mut part)).await;
            assert!(sent.unwrap() > 0);
        }
    }
    poll_fn(|cx| Pin::new(&mut *stream.lock().unwrap()).poll_shutdown(cx)).await.unwrap();
}

async fn expect_pattern(stream: &Mutex<HboneStream>, total: usize) {
    let mut pattern = Pattern::new();
    loop {
        let part = poll_fn(|cx| stream.lock().unwrap().poll_read_bytes(cx)).await.unwrap();
        if part.is_empty() {
            break;
        }
        let place = pattern.place;
        assert!(part == pattern.next(part.len()), "bytes differ after {place}");
    }
    assert_eq!(pattern.place, total);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_data_both_ways_at_once_arrives_as_it_was_sent() {
    const TOTAL: usize = 64 << 20;
    let mut bench = Bench::new().await;
    let (client, server) = bench.stream().await;
    let (client, server) = (Mutex::new(client), Mutex::new(server));
    tokio::join!(
        send_pattern(&client, TOTAL),
        send_pattern(&server, TOTAL),
        expect_pattern(&client, TOTAL),
        expect_pattern(&server, TOTAL),
    );
}

#[tokio::test]
async fn readers_that_stand_still_do_not_stall_another_stream() {
    let mut bench = Bench::new().await;
    let mut stalled = Vec::new();
    for _ in 1..STREAMS {
        let (mut client, server) = bench.stream().await;
        let sent = fill(&mut client).await;
        assert!(sent <= server.window(), "the window takes more than it should: {sent}");
        stalled.push((client, server, sent));
    }
    let held: usize = stalled.iter().map(|(.., sent)| sent).sum();
    assert!(held < 10 << 20, "{held} bytes for readers that stand still");
    let (mut client, mut server) = bench.stream().await;
    let data = vec![7; 4 << 20];
    let mut heard = vec![0; data.len()];
    let (sent, received) = tokio::join!(client.write_all(&data), server.read_exact(&mut heard));
    sent.unwrap();
    received.unwrap();
    assert_eq!(bench.server.connections(), 1);
    // A stalled stream goes on where it was when its reader wakes up.
    let (client, server, sent) = &mut stalled[0];
    let mut window = vec![0; *sent];
    server.read_exact(&mut window).await.unwrap();
    exchange(client, server, b"hello").await;
}

#[tokio::test]
async fn streams_that_come_all_at_once_to_a_new_connection_leave_room_as_well() {
    let Bench { mesh, pool, mut server } = Bench::new().await;
    let tls = mesh.client().await;
    let opening = join_all((0..STREAMS).map(|_| open(&pool, server.address, tls.clone())));
    let accepting = async {
        let mut accepted = Vec::new();
        for _ in 0..STREAMS {
            accepted.push(server.accept().await);
        }
        accepted
    };
    let (clients, mut servers) = tokio::join!(opening, accepting);
    let mut clients: Vec<_> = clients.into_iter().map(Result::unwrap).collect();
    // By what was said first by all, settings have gone to and fro.
    for _ in 0..3 {
        all_hear(&mut servers, &mut clients).await;
        all_hear(&mut clients, &mut servers).await;
    }
    assert_eq!(server.connections(), 1);
    let mut held = 0;
    for stream in &mut clients {
        held += fill(stream).await;
    }
    let most: usize = servers.iter().map(HboneStream::window).sum();
    assert!(held <= most, "{held} bytes wait in windows of {most}");
    assert!(held < 10 << 20, "{held} bytes for readers that stand still");
}

async fn all_hear(from: &mut [HboneStream], to: &mut [HboneStream]) {
    join_all(from.iter_mut().map(|stream| stream.write_u8(1))).await;
    join_all(to.iter_mut().map(|stream| stream.read_u8())).await;
}

/// Sends until nothing more is taken.
async fn fill(stream: &mut HboneStream) -> usize {
    let (mut data, mut sent) = (Bytes::from(vec![0; LARGEST_WINDOW as usize * 2]), 0);
    let quiet = Duration::from_millis(20);
    loop {
        let write = poll_fn(|cx| stream.poll_write_bytes(cx, &mut data));
        let Ok(written) = tokio::time::timeout(quiet, write).await else { return sent };
        sent += written.unwrap();
    }
}

async fn crowd(bench: &mut Bench, streams: usize) -> Vec<(HboneStream, HboneStream)> {
    let mut crowd = Vec::new();
    for _ in 0..streams {
        crowd.push(bench.stream().await);
    }
    crowd
}

async fn leave(crowd: Vec<(HboneStream, HboneStream)>) {
    for (mut client, mut server) in crowd {
        client.shutdown().await.unwrap();
        ends(&mut server).await;
        server.shutdown().await.unwrap();
        ends(&mut client).await;
    }
}

#[tokio::test]
async fn a_connection_with_few_streams_has_large_windows_again() {
    let mut bench = Bench::new().await;
    let many = crowd(&mut bench, 20).await;
    let (_, last) = many.last().unwrap();
    assert!(last.window() < LARGEST_WINDOW as usize);
    leave(many).await;
    let (mut client, server) = bench.stream().await;
    assert_eq!(bench.server.connections(), 1);
    assert_eq!(server.window(), LARGEST_WINDOW as usize);
    // Until the settings have arrived.
    let mut sent = 0;
    while sent < LARGEST_WINDOW as usize {
        sent += fill(&mut client).await;
    }
}

#[tokio::test]
async fn any_number_of_streams_may_be_dropped_while_the_other_end_still_speaks() {
    let mut bench = Bench::new().await;
    for number in 0..3000 {
        let (mut client, mut server) = bench.stream().await;
        exchange(&mut client, &mut server, b"asked").await;
        exchange(&mut server, &mut client, b"answered").await;
        // A reset and an end cross, in either direction.
        let (first, mut second) = if number % 2 == 0 { (client, server) } else { (server, client) };
        drop(first);
        let _ = second.shutdown().await;
    }
    assert_eq!(bench.server.connections(), 1);
}

#[tokio::test]
async fn a_window_that_becomes_smaller_stops_nobody() {
    let mut bench = Bench::new().await;
    let mut few = Vec::new();
    // However much of a window its reader has taken and has not given back yet, when more streams come.
    for part in 0..FEW {
        let (mut client, mut server) = bench.stream().await;
        for _ in 0..part {
            let piece = vec![7; LARGEST_WINDOW as usize / FEW];
            exchange(&mut client, &mut server, &piece).await;
            exchange(&mut server, &mut client, &piece).await;
        }
        few.push((client, server));
    }
    let _one_too_many = bench.stream().await;
    let (mut client, mut server) = bench.stream().await;
    assert!(server.window() < LARGEST_WINDOW as usize);
    // By the answer, both ends know of it and that the other does.
    for _ in 0..2 {
        exchange(&mut client, &mut server, b"asked").await;
        exchange(&mut server, &mut client, b"answered").await;
    }
    for (part, (client, server)) in few.iter_mut().enumerate() {
        let on = async {
            exchange(client, server, b"on").await;
            exchange(server, client, b"on").await;
        };
        let on = tokio::time::timeout(Duration::from_secs(10), on).await;
        assert!(on.is_ok(), "{part}/{FEW} of the window were taken, and nothing more comes");
    }
    assert_eq!(bench.server.connections(), 1);
}

#[tokio::test]
async fn a_stream_that_is_left_of_many_gets_a_large_window_and_counts_it() {
    let mut bench = Bench::new().await;
    let (mut client, mut server) = bench.stream().await;
    let many = crowd(&mut bench, 2 * FEW).await;
    exchange(&mut client, &mut server, b"asked").await;
    leave(many).await;
    // The server's end grows when the next stream comes.
    let _next = bench.stream().await;
    let mut sent = 0;
    // Until the settings have arrived. What was asked has not been given back.
    while sent < LARGEST_WINDOW as usize / 2 {
        sent += fill(&mut client).await;
    }
    assert!(sent <= server.window(), "{sent} bytes wait in a window of {}", server.window());
}

#[tokio::test]
async fn a_stream_whose_reader_stands_still_gets_no_more_than_that_was_told() {
    let mut bench = Bench::new().await;
    let mut many = crowd(&mut bench, 40).await;
    let (kept, mut at_server) = many.pop().unwrap();
    assert!(kept.window() < LARGEST_WINDOW as usize);
    leave(many).await;
    let mut sent = 0;
    loop {
        let more = fill(&mut at_server).await;
        sent += more;
        if more == 0 {
            break;
        }
    }
    assert!(sent <= kept.window(), "{sent} bytes wait in a window of {}", kept.window());
    drop((kept, at_server));
    let (client, mut server) = bench.stream().await;
    assert_eq!(bench.server.connections(), 1);
    let sent = fill(&mut server).await;
    assert!(sent <= client.window(), "{sent} bytes wait in a window of {}", client.window());
}
