//! Which connection a request goes by.

use std::sync::atomic::Ordering::Relaxed;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{OK, bench, get, hear, say, seen};

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
