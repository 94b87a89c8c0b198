//! Steps that never end, on a clock that leaps.

use super::*;

#[tokio::test]
async fn an_idle_connection_is_closed_and_replaced_when_needed() {
    let options = PoolOptions { idle_timeout: Duration::from_secs(1), ..Default::default() };
    let mut bench = Bench::with(options).await;
    drop(bench.stream().await);
    tokio::time::pause();
    bench.server.ended.recv().await.unwrap().unwrap();
    tokio::time::resume();
    let (mut client, mut server) = bench.stream().await;
    exchange(&mut client, &mut server, b"hello").await;
    assert_eq!(bench.server.connections(), 2);
}

/// Where a step that never ends is given up.
async fn times_out<T: std::fmt::Debug>(
    step: &str,
    work: impl Future<Output = Result<T, TunnelError>>,
) {
    let error = work.await.unwrap_err();
    assert!(matches!(error, TunnelError::Timeout { step: at, .. } if at == step), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_dial_without_an_answer_is_given_up() {
    let mesh = Mesh::new();
    let pool = HbonePool::new(PoolOptions::default());
    let dial = pending::<io::Result<TcpStream>>;
    let tls = mesh.client().await;
    times_out("connecting", pool.open(key(app()), connect_request(), dial, made(tls))).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_given_up_by_both_sides() {
    let mesh = Mesh::new();
    let pool = HbonePool::new(PoolOptions::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    times_out("the TLS handshake", open(&pool, address, mesh.client().await)).await;

    let (stream, _) = listener.accept().await.unwrap();
    drop(stream);
    let _silent = TcpStream::connect(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let tls = mesh.server("order").await;
    let on_connect = |_| (Handle::current(), std::future::ready(()));
    let served = serve(stream, tls, (), 1, peer_principal, CancellationToken::new(), on_connect);
    times_out("the TLS handshake", served).await;
}

#[tokio::test]
async fn a_client_without_a_preface_is_given_up() {
    let Bench { mesh, mut server, .. } = Bench::new().await;
    let _silent = tls_only(&mesh, server.address).await;
    tokio::time::pause();
    let ended = server.ended.recv().await.unwrap();
    times_out("the HTTP/2 preface", std::future::ready(ended)).await;
}

#[tokio::test]
async fn a_connect_without_an_answer_is_given_up() {
    let mut bench = Bench::new().await;
    let opened = open(&bench.pool, bench.server.address, bench.mesh.client().await);
    let kept = async {
        let connect = bench.server.connects.recv().await.unwrap();
        tokio::time::pause();
        connect
    };
    let (opened, _connect) = tokio::join!(opened, kept);
    times_out("the answer to CONNECT", std::future::ready(opened)).await;
}

#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_resets_its_streams_within_half_a_minute() {
    let mesh = Mesh::new();
    let pool = HbonePool::new(PoolOptions::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(mesh.server("order").await);
    let frozen = async {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(stream).await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let send = respond.send_response(Response::new(()), false).unwrap();
        let flush = poll_fn(|cx| Poll::Ready(connection.poll_closed(cx).is_ready()));
        assert!(!flush.await);
        (connection, send)
    };
    let opened = open(&pool, address, mesh.client().await);
    let (opened, _frozen) = tokio::join!(opened, frozen);
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    is_reset(&mut opened.unwrap()).await;
    assert!(began.elapsed() <= Duration::from_secs(30), "{:?}", began.elapsed());
}
