//! ipc-channel: its byte channels, which leave out serialisation. Receives without blocking, spinning, as the others do; to send always blocks.

use std::fs;
use std::path::PathBuf;

use ipc_channel::TryRecvError;
use ipc_channel::ipc::{self, IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender};

use crate::Outcome;
use crate::harness::patiently;
use crate::message::Message;
use crate::workload::{Receiver, Sender, Transport};

/// The sender of a lane leaves the name of its server in a file of this directory; the receiver makes the channel and sends it there.
pub struct IpcChannel(pub PathBuf);

impl Transport for IpcChannel {
    fn sender<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Sender<BYTES>> {
        let (server, name) = IpcOneShotServer::<IpcBytesSender>::new()?;
        let path = self.0.join(lane);
        let unfinished = path.with_extension("unfinished");
        fs::write(&unfinished, name)?;
        fs::rename(unfinished, path)?;
        let (_, sender) = server.accept().map_err(|error| format!("cannot accept the channel: {error}"))?;
        Ok(IpcSend(sender))
    }

    fn receiver<const BYTES: usize>(&self, lane: &str) -> Outcome<impl Receiver<BYTES>> {
        let path = self.0.join(lane);
        let name = patiently("read the server's name", || Ok(fs::read_to_string(&path).ok()))?;
        let (sender, receiver) = ipc::bytes_channel()?;
        let server = IpcSender::<IpcBytesSender>::connect(name)?;
        server.send(sender).map_err(|error| format!("cannot send the channel: {error}"))?;
        Ok(IpcReceive(receiver))
    }
}

struct IpcSend(IpcBytesSender);

impl<const BYTES: usize> Sender<BYTES> for IpcSend {
    fn try_send(&mut self, message: Message<'_, BYTES>) -> Outcome<bool> {
        self.0.send(message.bytes)?;
        Ok(true)
    }
}

struct IpcReceive(IpcBytesReceiver);

impl<const BYTES: usize> Receiver<BYTES> for IpcReceive {
    fn try_receive(&mut self, limit: usize, mut read: impl FnMut(&[u8])) -> Outcome<usize> {
        for number in 0..limit {
            match self.0.try_recv() {
                Ok(message) => read(&message),
                Err(TryRecvError::Empty) => return Ok(number),
                Err(error) => return Err(format!("cannot receive: {error}").into()),
            }
        }
        Ok(limit)
    }
}
