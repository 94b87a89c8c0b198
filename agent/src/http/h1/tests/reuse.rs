//! Which connection a request goes by.

use std::sync::atomic::Ordering::Relaxed;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::{OK, bench, bench_on, get, hear, say, seen};

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_between_requests_or_at_the_next_is_asked_anew() {
    for at_the_next in [false, true] {
        let mut bench = bench();
        bench.say(&get("/a")).await;
        let mut first = bench.server().await;
        hear(&mut first, &seen("/a")).await;
        say(&mut first, OK).await;
        bench.hear(OK).await;
        if at_the_next {
            bench.say(&get("/b")).await;
            hear(&mut first, "G").await;
            drop(first);
        } else {
            drop(first);
            bench.say(&get("/b")).await;
        }
        let mut second = bench.server().await;
        hear(&mut second, &seen("/b")).await;
        say(&mut second, OK).await;
        bench.hear(OK).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_not_be_sent_twice_ends_as_it_would_with_nothing_between() {
    let mut bench = bench();
    bench.say(&get("/a")).await;
    let mut server = bench.server().await;
    hear(&mut server, &seen("/a")).await;
    say(&mut server, OK).await;
    bench.hear(OK).await;
    bench.say("POST /b HTTP/1.1\r\nHost: h\r\n\r\n").await;
    hear(&mut server, "POST").await;
    drop(server);
    assert_eq!(bench.rest().await, "");
    assert_eq!(bench.dialled(), 1);
    assert_eq!(bench.log().await, ["/a 200 Through", "/b Unanswered"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_wants_to_be_rid_of_a_connection_gets_no_request_more_on_it() {
    let mut bench = bench();
    let mut kept = Vec::new();
    for (leaving, dialled) in [(false, 1), (false, 1), (true, 2)] {
        bench.forward.leaving.store(leaving, Relaxed);
        bench.say(&get("/")).await;
        if kept.len() < dialled {
            kept.push(bench.server().await);
        }
        let server = kept.last_mut().unwrap();
        hear(server, &seen("/")).await;
        say(server, OK).await;
        bench.hear(OK).await;
        assert_eq!(bench.dialled(), dialled);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_leaves_an_idle_connection_is_let_go_at_once() {
    let mut bench = bench();
    bench.say(&get("/")).await;
    let mut server = bench.server().await;
    hear(&mut server, &seen("/")).await;
    say(&mut server, OK).await;
    bench.hear(OK).await;
    server.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_behind_one_that_is_sent_again_are_not_lost() {
    let mut bench = bench();
    bench.say(&get("/a")).await;
    let mut first = bench.server().await;
    hear(&mut first, &seen("/a")).await;
    say(&mut first, OK).await;
    bench.hear(OK).await;
    bench.say(&format!("{}{}", get("/b"), get("/c"))).await;
    hear(&mut first, "G").await;
    drop(first);
    let mut second = bench.server().await;
    for path in ["/b", "/c"] {
        hear(&mut second, &seen(path)).await;
        say(&mut second, OK).await;
        bench.hear(OK).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_made_for_the_first_request_has_not_been_used() {
    for (request, answer) in
        [(get("/"), "HTTP/1.1 502"), (get("/").replace("GET", "POST"), "HTTP/1.1 502")]
    {
        let (ours, theirs) = duplex(64 << 10);
        let mut bench = bench_on(Some(ours));
        bench.say(&request).await;
        let mut server = theirs;
        hear(&mut server, &request[..4]).await;
        drop(server);
        bench.hear(answer).await;
        assert_eq!(bench.dialled(), 0);
    }
}
