//! Connections that are to end.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{super::waiting::LAST_REQUEST, OK, bench, get, hear, say, seen};

const LAST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nconnection: close\r\n\r\nok";

#[tokio::test(start_paused = true)]
async fn a_request_under_way_is_answered_and_the_client_asked_to_go() {
    let mut bench = bench();
    bench.say(&get("/")).await;
    let mut server = bench.server().await;
    hear(&mut server, &seen("/")).await;
    bench.drain.cancel();
    say(&mut server, OK).await;
    assert_eq!(bench.rest().await, LAST);
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_gets_its_last_request_answered() {
    let mut bench = bench();
    bench.say(&get("/1")).await;
    let mut server = bench.server().await;
    hear(&mut server, &seen("/1")).await;
    say(&mut server, OK).await;
    bench.hear(OK).await;
    bench.drain.cancel();
    sleep(Duration::from_millis(900)).await;
    bench.say(&get("/2")).await;
    hear(&mut server, &seen("/2")).await;
    say(&mut server, OK).await;
    assert_eq!(bench.rest().await, LAST);
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_that_asks_nothing_is_closed_in_order() {
    let mut bench = bench();
    bench.say(&get("/")).await;
    let mut server = bench.server().await;
    bench.drain.cancel();
    // The head goes before the agent ends, the body after it.
    let (head, body) = OK.split_at(OK.len() - 2);
    say(&mut server, head).await;
    bench.hear(&LAST[..LAST.len() - 2]).await;
    sleep(Duration::from_secs(5)).await;
    say(&mut server, body).await;
    assert_eq!(bench.rest().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_draining_finds_before_its_first_request_is_still_answered() {
    let mut bench = bench();
    bench.drain.cancel();
    bench.say(&get("/")).await;
    let mut server = bench.server().await;
    hear(&mut server, &seen("/")).await;
    say(&mut server, OK).await;
    assert_eq!(bench.rest().await, LAST);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_that_is_to_end_waits_for_one_more_request_and_no_longer() {
    let mut bench = bench();
    let began = Instant::now();
    bench.drain.cancel();
    assert_eq!(bench.rest().await, "");
    assert!(began.elapsed() >= LAST_REQUEST && began.elapsed() < 2 * LAST_REQUEST);
}
