//! Clients that take their time.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

use super::{OK, bench, get, hear, say, seen};

#[tokio::test(start_paused = true)]
async fn a_client_that_begins_to_ask_and_does_not_come_to_the_point_is_hung_up_on() {
    for start in ["GET / HTTP/1.1\r\nhost: a\r\nx-slow: ", "PRI * HTTP/2.0\r\n"] {
        let mut bench = bench();
        bench.say(start).await;
        let hung_up = timeout(Duration::from_secs(60), bench.rest()).await.unwrap();
        assert_eq!((&*hung_up, bench.dialled()), ("", 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_silent_between_its_requests_keeps_its_connection() {
    let mut bench = bench();
    let mut server = None;
    for pause in [0, 30, 5, 5, 5, 5, 19, 21, 60, 3000] {
        sleep(Duration::from_secs(pause)).await;
        bench.say(&get("/")).await;
        if server.is_none() {
            server = Some(bench.server().await);
        }
        let server = server.as_mut().unwrap();
        hear(server, &seen("/")).await;
        say(server, OK).await;
        bench.hear(OK).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_request_that_does_not_come_to_the_point_is_not_waited_for_either() {
    let mut bench = bench();
    bench.say(&get("/")).await;
    say(&mut bench.server().await, OK).await;
    bench.hear(OK).await;
    sleep(Duration::from_secs(30)).await;
    bench.say("GET / HTTP/1.1\r\nhost: a\r\nx-slow: ").await;
    let (mut reads, mut writes) = tokio::io::split(bench.client);
    let dribble = async {
        while writes.write_all(b"x").await.is_ok() {
            sleep(Duration::from_secs(5)).await;
        }
    };
    let mut heard = Vec::new();
    let hung_up = async { tokio::join!(reads.read_to_end(&mut heard), dribble) };
    timeout(Duration::from_secs(60), hung_up).await.unwrap().0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn bodies_may_take_their_time_although_their_request_is_answered() {
    let mut bench = bench();
    bench.say("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n").await;
    let mut server = bench.server().await;
    hear(&mut server, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nx-seen: 1\r\n\r\n").await;
    say(&mut server, OK).await;
    bench.hear(OK).await;
    for part in ["ab", "cd", "ef"] {
        sleep(Duration::from_secs(60)).await;
        bench.say(part).await;
        hear(&mut server, part).await;
    }
    bench.say(&get("/next")).await;
    hear(&mut server, &seen("/next")).await;
}
