//! Who is let in, and with what.

use super::*;

#[tokio::test]
async fn the_server_learns_who_connects_where_and_with_which_headers() {
    let mut bench = Bench::new().await;
    let tls = bench.mesh.client().await;
    let mut connect = connect_request();
    connect.headers.insert("baggage", "k=v".parse().unwrap());
    let address = bench.server.address;
    let opened = bench.pool.open(key(address), connect, || TcpStream::connect(address), made(tls));
    let arrived = async {
        let connect = bench.server.connects.recv().await.unwrap();
        assert_eq!(connect.authority, app());
        assert_eq!(connect.peer, principal("frontend"));
        assert_eq!(connect.headers["baggage"], "k=v");
        connect.accept().unwrap()
    };
    let (opened, mut accepted) = tokio::join!(opened, arrived);
    exchange(&mut opened.unwrap(), &mut accepted, b"hello").await;
}

#[tokio::test]
async fn a_server_that_is_another_workload_gets_no_stream() {
    let mesh = Mesh::new();
    let server = Server::start(mesh.server("user").await).await;
    let pool = HbonePool::new(PoolOptions::default());
    let error = open(&pool, server.address, mesh.client().await).await.unwrap_err();
    assert!(
        matches!(error, TunnelError::Tls { source: IdentityError::WrongPeer { .. } }),
        "{error}"
    );
}

/// Certificates that one CA's clients believe, for servers that believe another's.
struct Distrustful {
    issuer: SelfSignedCa,
    trusted: SelfSignedCa,
}

impl CertificateSource for Distrustful {
    fn issue<'a>(
        &'a self,
        principal: &'a Principal,
    ) -> BoxFuture<'a, Result<Certificate, IdentityError>> {
        Box::pin(async {
            let roots = self.trusted.issue(principal).await?.roots;
            Ok(Certificate { roots, ..self.issuer.issue(principal).await? })
        })
    }
}

#[tokio::test]
async fn a_client_of_another_ca_is_told_so() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let source = Distrustful { issuer: ca(&mesh.dir), trusted: ca(&other.dir) };
    let store = IdentityStore::new(Arc::new(source), TrustDomain::default());
    let tls = store.server_config(&principal("order")).await.unwrap();
    let mut server = Server::start(tls).await;
    let pool = HbonePool::new(PoolOptions::default());
    // Again and again: the server's alert must not be overtaken by its closing the socket.
    for _ in 0..20 {
        let error = open(&pool, server.address, mesh.client().await).await.unwrap_err();
        assert!(
            matches!(&error, TunnelError::Tls { source: IdentityError::Tls(why) }
                if why.contains("UnknownCA")),
            "{error}"
        );
        let ended = server.ended.recv().await.unwrap().unwrap_err();
        assert!(
            matches!(ended, TunnelError::Tls { source: IdentityError::UnknownIssuer }),
            "{ended}"
        );
    }
}

#[tokio::test]
async fn anything_but_a_connect_to_an_address_is_a_bad_request() {
    let Bench { mesh, mut server, .. } = Bench::new().await;
    let mut client = raw(&mesh, server.address).await;
    for (method, uri) in [
        (Method::GET, "https://10.0.0.7:8080/"),
        (Method::POST, "https://10.0.0.7:8080/"),
        (Method::CONNECT, "order.shop:8080"),
        (Method::CONNECT, "10.0.0.7"),
        (Method::CONNECT, "user@10.0.0.7:8080"),
    ] {
        let (response, _send) = client.send_request(request(method.clone(), uri), false).unwrap();
        let status = response.await.unwrap().status();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {uri}");
    }
    assert!(server.connects.try_recv().is_err());
    let (_response, _send) =
        client.send_request(request(Method::CONNECT, "[fd00::7]:8080"), false).unwrap();
    let connect = server.connects.recv().await.unwrap();
    assert_eq!(connect.authority, "[fd00::7]:8080".parse().unwrap());
}

#[tokio::test]
async fn bytes_sent_before_the_answer_wait_for_it() {
    let Bench { mesh, mut server, .. } = Bench::new().await;
    let mut client = raw(&mesh, server.address).await;
    let mut eager = || {
        let connect = request(Method::CONNECT, "10.0.0.7:8080");
        let (response, mut send) = client.send_request(connect, false).unwrap();
        send.send_data(Bytes::from_static(b"early"), false).unwrap();
        (response, send)
    };
    let (response, _send) = eager();
    server.connects.recv().await.unwrap().reject(StatusCode::FORBIDDEN);
    assert_eq!(response.await.unwrap().status(), StatusCode::FORBIDDEN);

    let (response, _send) = eager();
    let connect = server.connects.recv().await.unwrap();
    let mut stream = connect.accept().unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"early");
}

#[tokio::test]
async fn a_client_that_opens_and_resets_in_a_loop_meets_a_bound() {
    let mesh = Mesh::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = mesh.server("order").await;
    let (connect, mut connects) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        // Work that outlives the stream it is for, such as a dial to a slow application.
        let on_connect = |arrived: Connect| {
            connect.send(()).unwrap();
            (Handle::current(), async { drop((arrived, pending::<()>().await)) })
        };
        serve(stream, tls, (), 1, peer_principal, CancellationToken::new(), on_connect).await
    });
    let mut client = raw(&mesh, address).await;
    for _ in 0..CONNECTS_IN_WORK {
        client = client.ready().await.unwrap();
        let connect = request(Method::CONNECT, "10.0.0.7:8080");
        let (_response, mut send) = client.send_request(connect, false).unwrap();
        connects.recv().await.unwrap();
        send.send_reset(Reason::CANCEL);
    }
    client = client.ready().await.unwrap();
    let connect = request(Method::CONNECT, "10.0.0.7:8080");
    let (response, _send) = client.send_request(connect, false).unwrap();
    let error = response.await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM), "{error}");
}

#[tokio::test]
async fn headers_beyond_the_cap_never_reach_the_handler() {
    let Bench { mesh, mut server, .. } = Bench::new().await;
    let mut client = raw(&mesh, server.address).await;
    let mut connect = request(Method::CONNECT, "10.0.0.7:8080");
    for number in 0..20 {
        let name: http::HeaderName = format!("x-{number}").parse().unwrap();
        connect.headers_mut().insert(name, "v".repeat(4000).parse().unwrap());
    }
    let (response, _send) = client.send_request(connect, false).unwrap();
    let refused = match response.await {
        Ok(response) => response.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Err(_) => true,
    };
    assert!(refused);
    assert!(server.connects.try_recv().is_err());
}
