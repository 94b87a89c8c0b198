//! What passes of one request and its response.

use std::future::poll_fn;

use bytes::Bytes;
use h2::{Reason, ext::Protocol};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};

use super::{Bench, frames, get, ok, post, read, send, status};

fn trailers(sum: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static(sum))])
}

#[tokio::test]
async fn bodies_and_trailers_pass_both_ways() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let (response, mut to_agent) = post(&mut client, "/a");
    let mut server = bench.server().await;
    let (request, mut respond) = server.request().await;
    assert_eq!(
        (request.uri().to_string(), request.version()),
        ("http://a/a".into(), Version::HTTP_2)
    );
    assert_eq!(request.headers()["x-seen"], "1");
    to_agent.send_data("question".into(), false).unwrap();
    to_agent.send_trailers(trailers("1")).unwrap();
    let mut body = request.into_body();
    assert_eq!(read(&mut body).await.unwrap(), b"question");
    assert_eq!(body.trailers().await.unwrap(), Some(trailers("1")));
    let mut from_server = respond.send_response(Response::new(()), false).unwrap();
    from_server.send_data("answer".into(), false).unwrap();
    from_server.send_trailers(trailers("2")).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.headers()["x-passed"], "1");
    let mut body = response.into_body();
    assert_eq!(read(&mut body).await.unwrap(), b"answer");
    assert_eq!(body.trailers().await.unwrap(), Some(trailers("2")));
    assert_eq!(bench.log(1).await, ["/a 200 x-sum 2: the response is through"]);
    bench.nothing_held().await;
}

#[tokio::test]
async fn megabytes_pass_both_ways_at_once() {
    const LENGTH: usize = 4 << 20;
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let (response, mut to_agent) = post(&mut client, "/");
    let mut server = bench.server().await;
    let (request, mut respond) = server.request().await;
    let mut from_server = respond.send_response(Response::new(()), false).unwrap();
    let (mut up, mut down) = (request.into_body(), response.await.unwrap().into_body());
    let content = Bytes::from(vec![7; LENGTH]);
    let ((), (), up, down) = tokio::join!(
        send(&mut to_agent, content.clone(), true),
        send(&mut from_server, content.clone(), true),
        read(&mut up),
        read(&mut down),
    );
    assert!(up.unwrap() == content && down.unwrap() == content);
    bench.nothing_held().await;
}

#[tokio::test]
async fn a_request_without_a_body_is_whole_with_its_head_and_one_that_ends_empty_ends() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let response = get(&mut client, "/");
    let mut server = bench.server().await;
    let (request, mut respond) = server.request().await;
    assert!(request.body().is_end_stream());
    ok(&mut respond);
    assert!(response.await.unwrap().body().is_end_stream());
    let (response, mut to_agent) = post(&mut client, "/");
    let (request, mut respond) = server.request().await;
    to_agent.send_data(Bytes::new(), true).unwrap();
    assert_eq!(read(&mut request.into_body()).await.unwrap(), b"");
    ok(&mut respond);
    assert_eq!(status(response).await, 200);
}

#[tokio::test]
async fn interim_responses_pass_as_they_come() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let (mut response, mut to_agent) = post(&mut client, "/");
    let mut server = bench.server().await;
    let (_request, mut respond) = server.request().await;
    for code in [100, 103] {
        let interim = Response::builder().status(code).header("link", "</a>").body(()).unwrap();
        respond.send_informational(interim).unwrap();
        let heard = poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!(
            (heard.status().as_u16(), &heard.headers()["link"]),
            (code, &HeaderValue::from_static("</a>"))
        );
    }
    to_agent.send_data("x".into(), true).unwrap();
    ok(&mut respond);
    assert_eq!(status(response).await, 200);
    assert_eq!(bench.log(1).await, ["/ 100 103 200: the response is through"]);
}

#[tokio::test]
async fn a_server_that_never_comes_to_its_answer_is_broken_off() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let response = get(&mut client, "/");
    let mut server = bench.server().await;
    let (_request, mut respond) = server.request().await;
    for _ in 0..100 {
        respond.send_informational(Response::builder().status(103).body(()).unwrap()).unwrap();
    }
    assert_eq!(status(response).await, 502);
    assert_eq!(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
}

#[tokio::test]
async fn an_early_answer_to_an_upload_arrives_whole_and_then_the_client_is_told_to_stop() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let (response, mut to_agent) = post(&mut client, "/upload");
    let mut server = bench.server().await;
    let (request, mut respond) = server.request().await;
    to_agent.send_data("the beginning".into(), false).unwrap();
    let too_large = Response::builder().status(413).body(()).unwrap();
    let mut answer = respond.send_response(too_large, false).unwrap();
    answer.send_data("too large".into(), true).unwrap();
    // A server that drops what is left of a request resets it, without a reason.
    drop((request, answer, respond));
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(read(&mut response.into_body()).await.unwrap(), b"too large");
    assert_eq!(poll_fn(|cx| to_agent.poll_reset(cx)).await.unwrap(), Reason::NO_ERROR);
    assert_eq!(bench.log(1).await, ["/upload 413: the response is through"]);
}

#[tokio::test]
async fn an_upload_goes_on_behind_its_answer_for_a_server_that_reads_it() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let (response, mut to_agent) = post(&mut client, "/");
    let mut server = bench.server().await;
    let (request, mut respond) = server.request().await;
    ok(&mut respond);
    assert_eq!(status(response).await, 200);
    to_agent.send_data("the rest".into(), true).unwrap();
    assert_eq!(read(&mut request.into_body()).await.unwrap(), b"the rest");
    bench.log(1).await;
}

#[tokio::test]
async fn connect_carries_bytes_both_ways_until_both_have_ended() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let request = Request::connect("b:443").body(()).unwrap();
    let (response, mut to_agent) = client.send_request(request, false).unwrap();
    let mut server = bench.server().await;
    let (request, mut respond) = server.request().await;
    assert_eq!(request.uri().authority().unwrap(), "b:443");
    let mut from_server = respond.send_response(Response::new(()), false).unwrap();
    let (mut up, mut down) = (request.into_body(), response.await.unwrap().into_body());
    to_agent.send_data("ping".into(), false).unwrap();
    assert_eq!(up.data().await.unwrap().unwrap(), "ping");
    from_server.send_data("pong".into(), true).unwrap();
    assert_eq!(read(&mut down).await.unwrap(), b"pong");
    assert!(bench.forward.log.lock().unwrap().is_empty(), "the client has not ended");
    to_agent.send_data("bye".into(), true).unwrap();
    assert_eq!(read(&mut up).await.unwrap(), b"bye");
    bench.log(1).await;
}

#[tokio::test]
async fn clients_may_extend_connect_where_their_server_takes_it() {
    for takes in [false, true] {
        let mut bench = Bench::new();
        let mut client = bench.client().await;
        let response = get(&mut client, "/");
        let mut builder = h2::server::Builder::new();
        if takes {
            builder.enable_connect_protocol();
        }
        let mut server = bench.server_of(&builder).await;
        let (_, mut respond) = server.request().await;
        ok(&mut respond);
        assert_eq!(status(response).await, 200);
        // Another request has the client hear whatever settings came before its answer.
        let response = get(&mut client, "/");
        let (_, mut respond) = server.request().await;
        ok(&mut respond);
        assert_eq!(status(response).await, 200);
        assert_eq!(client.is_extended_connect_protocol_enabled(), takes);
        if takes {
            let mut request = Request::connect("http://a/chat").body(()).unwrap();
            request.extensions_mut().insert(Protocol::from_static("websocket"));
            let (response, _to_agent) = client.send_request(request, false).unwrap();
            let (request, mut respond) = server.request().await;
            assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
            ok(&mut respond);
            assert_eq!(status(response).await, 200);
        }
    }
}

#[tokio::test]
async fn requests_that_name_two_servers_or_none_that_can_be_are_answered_400() {
    for (uri, host) in [("http://a/", "b"), ("/", "a b")] {
        let bench = Bench::new();
        let mut client = bench.client().await;
        let request = Request::builder().version(Version::HTTP_11).uri(uri).header("host", host);
        let (response, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
        assert_eq!(status(response).await, 400);
        assert!(bench.log(1).await[0].starts_with("400: "));
    }
}

#[tokio::test]
async fn odd_targets_pass_and_those_that_can_be_none_are_reset() {
    for (path, passes) in [
        (&b"/a\"b{c}|d^e?f=\\"[..], true),
        ("/ä".as_bytes(), true),
        (b"/%zz//../", true),
        (b"/a<b", false),
        (b"/a b", false),
    ] {
        let mut bench = Bench::new();
        let mut client = bench.connection();
        frames::begin_as_client(&mut client).await;
        // `:method: GET`, `:scheme: http`, `:authority: a`, and a literal `:path`.
        let mut head = vec![0x82, 0x86, 0x41, 1, b'a', 0x04, u8::try_from(path.len()).unwrap()];
        head.extend(path);
        frames::write(&mut client, frames::HEADERS, frames::ENDS, 1, &head).await;
        if passes {
            let (request, _respond) = bench.server().await.request().await;
            let target = request.uri().path_and_query().unwrap().as_str();
            assert_eq!(target.as_bytes(), path);
        } else {
            let reset = frames::next_of(frames::RST_STREAM, &mut client).await;
            assert_eq!(reset.payload, [0, 0, 0, 1], "{path:?}");
        }
    }
}

#[tokio::test]
async fn cookies_come_in_the_crumbs_and_names_in_the_order_they_were_sent() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let mut request = Request::get("http://a/").body(()).unwrap();
    for (name, value) in
        [("b", "1"), ("cookie", "x=1"), ("a", "2"), ("cookie", "y=2"), ("te", "trailers")]
    {
        request.headers_mut().append(name, HeaderValue::from_static(value));
    }
    let (_response, _) = client.send_request(request, true).unwrap();
    let (request, _respond) = bench.server().await.request().await;
    let fields: Vec<_> = request.headers().keys().map(|name| name.as_str()).collect();
    assert_eq!(fields, ["b", "cookie", "a", "te", "x-seen"]);
    let cookies: Vec<_> = request.headers().get_all("cookie").into_iter().collect();
    assert_eq!(cookies, ["x=1", "y=2"]);
}

#[tokio::test]
async fn a_refused_head_request_has_no_body_that_its_client_would_not_expect() {
    let bench = Bench::refusing(503, "nobody");
    let mut client = bench.client().await;
    let request = Request::head("http://a/").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(&response.headers()["content-length"], "6");
    assert!(response.body().is_end_stream());
}

#[tokio::test]
async fn a_refused_grpc_client_finds_a_status_of_its_own_and_others_read_a_text() {
    for (kind, status, expected) in [
        ("application/grpc+proto", 403, Some("7")),
        ("application/grpc", 503, Some("14")),
        ("application/json", 503, None),
    ] {
        let bench = Bench::refusing(status, "sluice: not you\n");
        let mut client = bench.client().await;
        let request = Request::post("http://a/").header("content-type", kind).body(()).unwrap();
        let (response, _body) = client.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        match expected {
            Some(code) => {
                assert_eq!(response.status(), 200);
                assert_eq!(response.headers()["grpc-status"], code);
                assert_eq!(response.headers()["grpc-message"], "sluice: not you");
                assert!(response.body().is_end_stream(), "trailers only");
            }
            None => {
                assert_eq!(response.status(), status);
                let text = read(&mut response.into_body()).await.unwrap();
                assert_eq!(text, b"sluice: not you\n");
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_has_its_answer_and_gives_up_its_upload_has_broken_nothing_off() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let (response, mut to_agent) = post(&mut client, "/");
    let mut server = bench.server().await;
    let (request, mut respond) = server.request().await;
    ok(&mut respond);
    assert_eq!(status(response).await, 200);
    to_agent.send_reset(h2::Reason::CANCEL);
    let error = read(&mut request.into_body()).await.unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    assert_eq!(bench.log(1).await, ["/ 200: the response is through"]);
}
