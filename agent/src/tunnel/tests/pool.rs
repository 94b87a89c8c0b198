//! Which connection a stream gets, and what becomes of connections.

use super::*;

#[tokio::test]
async fn a_refused_connect_carries_its_status() {
    let mut bench = Bench::new().await;
    let opened = open(&bench.pool, bench.server.address, bench.mesh.client().await);
    let refused = async {
        let connect = bench.server.connects.recv().await.unwrap();
        connect.reject(StatusCode::SERVICE_UNAVAILABLE);
    };
    let (opened, ()) = tokio::join!(opened, refused);
    assert!(
        matches!(opened, Err(TunnelError::Refused { status: StatusCode::SERVICE_UNAVAILABLE })),
        "{opened:?}"
    );
    // Nothing is wrong with the connection.
    bench.stream().await;
    assert_eq!(bench.server.connections(), 1);
}

#[tokio::test]
async fn headers_that_http2_forbids_are_an_error_and_not_a_wait() {
    let mut bench = Bench::new().await;
    let (mut client, mut server) = bench.stream().await;
    let mut connect = connect_request();
    connect.headers.insert("connection", "close".parse().unwrap());
    let address = bench.server.address;
    let tls = bench.mesh.client().await;
    let opened = bench.pool.open(key(address), connect, || TcpStream::connect(address), made(tls));
    let error = opened.await.unwrap_err();
    assert!(matches!(error, TunnelError::Broken { .. }), "{error}");
    exchange(&mut client, &mut server, b"still here").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once_share_ten_connections() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.server("order").await).await.echo();
    let pool = Arc::new(HbonePool::new(PoolOptions::default()));
    let mut clients = JoinSet::new();
    let together = Arc::new(tokio::sync::Barrier::new(1000));
    for number in 0..1000_u32 {
        let (pool, tls, address) = (pool.clone(), mesh.client().await, server.address);
        let together = together.clone();
        clients.spawn(async move {
            let mut stream = open(&pool, address, tls).await.unwrap();
            // All are open before the first one ends.
            together.wait().await;
            stream.write_u32(number).await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read_u32().await.unwrap(), number);
            ends(&mut stream).await;
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1000 / STREAMS as usize);
}

#[tokio::test]
async fn a_dial_that_fails_fails_everyone_who_waited_for_it() {
    let mesh = Mesh::new();
    let pool = HbonePool::new(PoolOptions::default());
    let dials = AtomicUsize::new(0);
    let dial = || async {
        dials.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        Err::<TcpStream, _>(io::ErrorKind::ConnectionRefused.into())
    };
    let address = app();
    let tls = mesh.client().await;
    let opens =
        (0..50).map(|_| pool.open(key(address), connect_request(), dial, made(tls.clone())));
    for opened in futures_util::future::join_all(opens).await {
        assert!(matches!(opened, Err(TunnelError::Dial { .. })), "{opened:?}");
    }
    assert_eq!(dials.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn when_the_one_who_dials_gives_up_another_one_dials() {
    let mut bench = Bench::new().await;
    let tls = bench.mesh.client().await;
    let pool = Arc::new(bench.pool);
    let address = bench.server.address;
    let (dialling, dialled) = tokio::sync::oneshot::channel();
    let dialling = Mutex::new(Some(dialling));
    let first = {
        let (pool, tls) = (pool.clone(), tls.clone());
        tokio::spawn(async move {
            let dial = || {
                dialling.lock().unwrap().take().unwrap().send(()).unwrap();
                pending()
            };
            pool.open(key(address), connect_request(), dial, made(tls)).await
        })
    };
    dialled.await.unwrap();
    let second = tokio::spawn(async move { open(&pool, address, tls).await });
    tokio::task::yield_now().await;
    assert_eq!(bench.server.connections(), 0, "the second dials beside the first");
    first.abort();
    let mut accepted = bench.server.accept().await;
    exchange(&mut second.await.unwrap().unwrap(), &mut accepted, b"hello").await;
}

#[tokio::test]
async fn a_draining_server_keeps_its_streams_and_gets_no_more() {
    let mut bench = Bench::new().await;
    let (mut client, mut server) = bench.stream().await;
    assert!(!client.is_leaving());
    bench.server.drain();
    let (mut later, mut later_server) = bench.stream().await;
    // Whether the client knew of the drain or not, the stream is there.
    exchange(&mut later, &mut later_server, b"hello").await;
    exchange(&mut client, &mut server, b"still here").await;
    assert!(
        client.is_leaving() && !server.is_leaving(),
        "what the server said first has arrived first"
    );
    assert!(bench.server.ended.is_empty());
    for stream in [&mut client, &mut server] {
        stream.shutdown().await.unwrap();
    }
    ends(&mut client).await;
    ends(&mut server).await;
    drop((client, server, later, later_server));
    bench.server.ended.recv().await.unwrap().unwrap();
    bench.stream().await;
    assert_eq!(bench.server.connections(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stream_is_lost_to_connections_that_drain() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.server("order").await).await.echo();
    let pool = Arc::new(HbonePool::new(PoolOptions::default()));
    let mut clients = JoinSet::new();
    for number in 0..400_u32 {
        let (pool, tls, address) = (pool.clone(), mesh.client().await, server.address);
        clients.spawn(async move {
            let mut stream = open(&pool, address, tls).await.unwrap();
            stream.write_u32(number).await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read_u32().await.unwrap(), number);
        });
        if number % 20 == 0 {
            std::mem::take(&mut *server.drain.lock().unwrap()).cancel();
            tokio::task::yield_now().await;
        }
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

#[tokio::test]
async fn a_renewed_certificate_takes_a_new_connection_and_leaves_the_old_to_its_streams() {
    let mut bench = Bench::new().await;
    let (mut old_client, mut old_server) = bench.stream().await;
    let renewed = bench.mesh.renewed().await;
    let (mut client, mut server) = bench.stream_with(renewed.clone()).await;
    assert_eq!(bench.server.connections(), 2);
    exchange(&mut old_client, &mut old_server, b"old").await;
    exchange(&mut client, &mut server, b"new").await;
    assert!(bench.server.ended.is_empty());
    drop((old_client, old_server));
    bench.server.ended.recv().await.unwrap().unwrap();
    exchange(&mut client, &mut server, b"new").await;
    bench.stream_with(renewed).await;
    assert_eq!(bench.server.connections(), 2);
}

#[tokio::test]
async fn a_stream_of_another_generation_takes_a_new_connection_and_the_old_one_ends_with_its_own() {
    let mut bench = Bench::new().await;
    let (mut old_client, mut old_server) = bench.stream().await;
    let next = Made { generation: 1, ..made(bench.mesh.client().await) };
    let (mut client, mut server) = bench.stream_of(next.clone()).await;
    assert_eq!(bench.server.connections(), 2);
    exchange(&mut old_client, &mut old_server, b"old").await;
    drop((old_client, old_server));
    bench.server.ended.recv().await.unwrap().unwrap();
    exchange(&mut client, &mut server, b"new").await;
    bench.stream_of(next).await;
    assert_eq!(bench.server.connections(), 2);
}

#[tokio::test]
async fn dropping_the_pool_closes_connections_when_their_streams_end() {
    let mut bench = Bench::new().await;
    let (mut client, mut server) = bench.stream().await;
    drop(bench.pool);
    exchange(&mut client, &mut server, b"hello").await;
    assert!(bench.server.ended.is_empty());
    drop((client, server));
    bench.server.ended.recv().await.unwrap().unwrap();
}
