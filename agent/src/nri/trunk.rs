//! The trunk: several logical connections over one socket.
//!
//! A frame is the connection's number and the payload's length, four bytes each in network
//! order, and the payload. Frames do not respect messages: a message may be split over several.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{NriError, rpc};

/// Where the runtime calls the plugin.
pub(super) const PLUGIN: u32 = 1;
/// Where the plugin calls the runtime.
pub(super) const RUNTIME: u32 = 2;

const HEADER: usize = 8;
/// The largest payload the runtime itself would send or accept.
const LONGEST: usize = rpc::HEADER + rpc::LONGEST;

/// Reads the next frame; `None` at an orderly end.
pub(super) async fn read(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<Option<(u32, Bytes)>, NriError> {
    let mut header = [0; HEADER];
    match from.read_exact(&mut header).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mut fields = &header[..];
    let (connection, length) = (fields.get_u32(), fields.get_u32() as usize);
    if length > LONGEST {
        return Err(NriError::Malformed("a frame larger than any message"));
    }
    let mut payload = BytesMut::zeroed(length);
    from.read_exact(&mut payload).await?;
    Ok(Some((connection, payload.freeze())))
}

/// Writes a message as one frame.
pub(super) async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    connection: u32,
    message: &[u8],
) -> Result<(), NriError> {
    let mut frame = BytesMut::with_capacity(HEADER + message.len());
    frame.put_u32(connection);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    Ok(to.write_all(&frame).await?)
}
