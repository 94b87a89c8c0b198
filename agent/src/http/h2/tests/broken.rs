//! Streams and connections that break.

use std::future::poll_fn;

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};
use tokio::io::AsyncWriteExt;

use super::{
    Bench,
    frames::{self, GOAWAY, HEADERS},
    get, ok, post, read, status,
};

#[tokio::test]
async fn a_client_s_reset_reaches_its_server_with_its_reason() {
    for reason in [Reason::CANCEL, Reason::from(1234)] {
        let mut bench = Bench::new();
        let mut client = bench.client().await;
        let (_response, mut to_agent) = post(&mut client, "/");
        let mut server = bench.server().await;
        let (request, mut respond) = server.request().await;
        to_agent.send_reset(reason);
        assert_eq!(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap(), reason);
        drop(request);
        assert!(bench.log(1).await[0].starts_with("/: the client left"));
    }
}

#[tokio::test]
async fn a_client_that_gives_up_while_its_server_works_ends_the_work() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let (response, mut to_agent) = {
        let request = Request::get("http://a/").body(()).unwrap();
        client.send_request(request, true).unwrap()
    };
    let mut server = bench.server().await;
    let (_request, mut respond) = server.request().await;
    to_agent.send_reset(Reason::CANCEL);
    assert_eq!(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
    drop(response);
}

#[tokio::test]
async fn a_server_s_reset_reaches_its_client_with_its_reason_whenever_it_comes() {
    for reason in [Reason::CANCEL, Reason::HTTP_1_1_REQUIRED, Reason::ENHANCE_YOUR_CALM] {
        for answered in [false, true] {
            let mut bench = Bench::new();
            let mut client = bench.client().await;
            let (response, _to_agent) = post(&mut client, "/");
            let mut server = bench.server().await;
            let (_request, mut respond) = server.request().await;
            let error = if answered {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                let mut heard = response.await.unwrap().into_body();
                body.send_reset(reason);
                read(&mut heard).await.unwrap_err()
            } else {
                respond.send_reset(reason);
                response.await.unwrap_err()
            };
            assert_eq!(error.reason(), Some(reason), "{answered}");
        }
    }
}

#[tokio::test]
async fn what_a_server_said_before_it_reset_arrives_first() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let (response, _to_agent) = post(&mut client, "/");
    let mut server = bench.server().await;
    let (_request, mut respond) = server.request().await;
    let mut body = respond.send_response(Response::new(()), false).unwrap();
    let last = Bytes::from(vec![1; 32 << 10]);
    body.send_data(last.clone(), false).unwrap();
    // Its own connection has it all, before the agent has sent any of it on.
    tokio::task::yield_now().await;
    body.send_reset(Reason::INTERNAL_ERROR);
    let heard = async {
        let mut body = response.await?.into_body();
        let mut length = 0;
        while let Some(bytes) = body.data().await {
            match bytes {
                Ok(bytes) => length += bytes.len(),
                Err(error) => return Ok((length, error.reason())),
            }
        }
        Ok::<_, h2::Error>((length, None))
    };
    assert_eq!(heard.await.unwrap(), (last.len(), Some(Reason::INTERNAL_ERROR)));
}

#[tokio::test]
async fn a_request_that_a_server_refused_is_sent_again_once_and_then_the_client_may() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let response = get(&mut client, "/");
    for _ in 0..2 {
        let mut server = bench.server().await;
        let (_, mut respond) = server.request().await;
        respond.send_reset(Reason::REFUSED_STREAM);
    }
    assert_eq!(response.await.unwrap_err().reason(), Some(Reason::REFUSED_STREAM));
    assert!(bench.servers.is_empty(), "asked a third time");
}

#[tokio::test]
async fn a_body_that_was_begun_is_not_sent_again() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let (response, mut to_agent) = post(&mut client, "/");
    to_agent.send_data("begun".into(), false).unwrap();
    let mut server = bench.server().await;
    let (mut request, mut respond) = server.request().await;
    request.body_mut().data().await.unwrap().unwrap();
    respond.send_reset(Reason::REFUSED_STREAM);
    assert_eq!(response.await.unwrap_err().reason(), Some(Reason::REFUSED_STREAM));
    assert!(bench.servers.is_empty());
}

#[tokio::test]
async fn what_a_server_has_not_looked_at_when_it_goes_is_asked_of_another() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let (first, second) = (get(&mut client, "/1"), post(&mut client, "/2"));
    let mut leaving = bench.servers.recv().await.unwrap();
    frames::begin_as_server(&mut leaving).await;
    for stream in [1, 3] {
        assert_eq!(frames::next_of(HEADERS, &mut leaving).await.stream, stream);
    }
    // The first is the last that it answers.
    frames::write(&mut leaving, GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]).await;
    let mut other = bench.server().await;
    let (request, mut respond) = other.request().await;
    assert_eq!(request.uri().path(), "/2");
    ok(&mut respond);
    assert_eq!(status(second.0).await, 200);
    // What came before goes on, and what comes after does not go there.
    let third = get(&mut client, "/3");
    ok(&mut other.request().await.1);
    assert_eq!(status(third).await, 200);
    frames::write(&mut leaving, HEADERS, frames::ENDS, 1, frames::OK).await;
    assert_eq!(status(first).await, 200);
}

#[tokio::test]
async fn a_kept_connection_that_closes_at_the_next_request_is_replaced() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let response = get(&mut client, "/1");
    let mut closing = bench.servers.recv().await.unwrap();
    frames::begin_as_server(&mut closing).await;
    frames::next_of(HEADERS, &mut closing).await;
    frames::write(&mut closing, HEADERS, frames::ENDS, 1, frames::OK).await;
    assert_eq!(status(response).await, 200);
    let response = get(&mut client, "/2");
    frames::next_of(HEADERS, &mut closing).await;
    drop(closing);
    let mut other = bench.server().await;
    ok(&mut other.request().await.1);
    assert_eq!(status(response).await, 200);
}

#[tokio::test]
async fn servers_that_speak_something_else_are_said_to() {
    for answer in [&b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n"[..], b""] {
        let mut bench = Bench::new();
        let mut client = bench.client().await;
        let response = get(&mut client, "/");
        let mut server = bench.servers.recv().await.unwrap();
        server.write_all(answer).await.unwrap();
        drop(server);
        let response = response.await.unwrap();
        assert_eq!(response.status(), 502);
        let text = String::from_utf8(read(&mut response.into_body()).await.unwrap()).unwrap();
        match answer {
            [] => assert!(text.contains("without an answer"), "{text}"),
            _ => assert!(text.contains("does not speak HTTP/2"), "{text}"),
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_ends_all_it_asked() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let (response, to_agent) = post(&mut client, "/");
    let mut server = bench.server().await;
    let (_request, mut respond) = server.request().await;
    drop((client, response, to_agent));
    assert_eq!(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
    bench.nothing_held().await;
}

#[tokio::test]
async fn more_of_a_body_than_was_said_is_the_client_s_fault() {
    let mut bench = Bench::new();
    let mut client = bench.client().await;
    let request = Request::post("http://a/").header("content-length", "3").body(()).unwrap();
    let (response, mut to_agent) = client.send_request(request, false).unwrap();
    let mut server = bench.server().await;
    let (_request, mut respond) = server.request().await;
    to_agent.send_data("four".into(), false).unwrap();
    assert_eq!(response.await.unwrap_err().reason(), Some(Reason::PROTOCOL_ERROR));
    assert!(poll_fn(|cx| respond.poll_reset(cx)).await.is_ok());
    assert!(bench.log(1).await[0].starts_with("/: the request is malformed"));
}
