//! gRPC as both ends speak it, on HTTP/2 itself: one method, which sends back what it gets.

use std::io;

use anyhow::{Context, ensure};
use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{self, SendRequest},
    server::{self, SendResponse},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use tokio::{net::TcpStream, task::JoinSet};

/// A message with its prefix: not compressed, 64 bytes.
const MESSAGE: Bytes = Bytes::from_static(&ECHOED);
static ECHOED: [u8; 5 + 64] = {
    let mut message = [0xa5; 5 + 64];
    [message[0], message[1], message[2], message[3], message[4]] = [0, 0, 0, 0, 64];
    message
};

const STATUS: &str = "grpc-status";
const KIND: HeaderValue = HeaderValue::from_static("application/grpc");

/// A client's connection.
pub(crate) struct Connection {
    requests: SendRequest<Bytes>,
    _driver: JoinSet<()>,
}

impl Connection {
    pub(crate) async fn on(stream: TcpStream) -> anyhow::Result<Self> {
        let (requests, connection) = client::handshake(stream).await?;
        let mut driver = JoinSet::new();
        // Each call is told of what breaks.
        driver.spawn(async move { drop(connection.await) });
        Ok(Self { requests, _driver: driver })
    }

    /// For one caller of many.
    pub(crate) fn caller(&self) -> Caller {
        Caller(self.requests.clone())
    }
}

/// Makes calls, one after another.
pub(crate) struct Caller(SendRequest<Bytes>);

/// One that is open.
pub(crate) struct Call {
    send: SendStream<Bytes>,
    receive: RecvStream,
}

impl Caller {
    /// One message there, one back, and the status.
    pub(crate) async fn unary(&mut self) -> anyhow::Result<()> {
        let (response, mut send) = self.begin().await?;
        send.send_data(MESSAGE, true)?;
        let mut receive = response.await?.into_body();
        message(&mut receive).await?;
        ended(&mut receive).await
    }

    /// Opens a call of streams.
    pub(crate) async fn stream(&mut self) -> anyhow::Result<Call> {
        let (response, send) = self.begin().await?;
        let receive = response.await?.into_body();
        Ok(Call { send, receive })
    }

    async fn begin(&mut self) -> anyhow::Result<(client::ResponseFuture, SendStream<Bytes>)> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = http::Uri::from_static("http://shop/shop.Orders/Echo");
        request.headers_mut().insert(header::CONTENT_TYPE, KIND);
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        let mut requests = self.0.clone().ready().await?;
        let begun = requests.send_request(request, false)?;
        self.0 = requests;
        Ok(begun)
    }
}

impl Call {
    /// One message there and back.
    pub(crate) async fn echo(&mut self) -> anyhow::Result<()> {
        self.send.send_data(MESSAGE, false)?;
        message(&mut self.receive).await
    }

    /// Sends no more, and waits for the status.
    pub(crate) async fn finish(mut self) -> anyhow::Result<()> {
        self.send.send_data(Bytes::new(), true)?;
        ended(&mut self.receive).await
    }
}

/// Waits for as many bytes as a message has, in however many frames.
async fn message(receive: &mut RecvStream) -> anyhow::Result<()> {
    let mut left = MESSAGE.len();
    while left > 0 {
        let data = receive.data().await.context("the call ended without a message")??;
        receive.flow_control().release_capacity(data.len())?;
        left = left.checked_sub(data.len()).context("more than a message came")?;
    }
    Ok(())
}

async fn ended(receive: &mut RecvStream) -> anyhow::Result<()> {
    ensure!(receive.data().await.is_none(), "a message too many came");
    let trailers = receive.trailers().await?.unwrap_or_default();
    let status = trailers.get(STATUS).context("no status came")?;
    ensure!(status == "0", "the status is {status:?}");
    Ok(())
}

/// Serves a connection.
pub(crate) async fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = server::handshake(stream).await.map_err(io::Error::other)?;
    let mut calls = JoinSet::new();
    while let Some(call) = connection.accept().await {
        let (request, respond) = call.map_err(io::Error::other)?;
        // The client is told by its own end of what breaks.
        calls.spawn(async move { drop(answer(request.into_body(), respond).await) });
        while calls.try_join_next().is_some() {}
    }
    Ok(())
}

async fn answer(
    mut receive: RecvStream,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    response.headers_mut().insert(header::CONTENT_TYPE, KIND);
    let mut send = respond.send_response(response, false)?;
    while let Some(data) = receive.data().await {
        let data = data?;
        receive.flow_control().release_capacity(data.len())?;
        if !data.is_empty() {
            send.send_data(data, false)?;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    send.send_trailers(trailers)
}
