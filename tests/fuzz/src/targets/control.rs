//! The control protocol between an EA and its worker: frames as bytes, and commands as JSON, which the protocol's types share.

use std::time::Instant;

use roomlog_bus::{ids::RoomId, media::MediaCommand};
use roomlog_sfu::{
    Worker,
    control::{FrameDecoder, FromWorker, MAX_FRAME_BYTES, ToWorker, WorkerConfig, encode},
};
use serde::{Serialize, de::DeserializeOwned};

/// Commands of one input.
const MAX_COMMANDS: usize = 32;

/// First byte 0, 1, 2: a byte stream of one kind of frame, with the size of its pieces behind it. Else: a command a line, as JSON.
pub fn run(data: &[u8]) {
    match data {
        [0, step, stream @ ..] => frames::<ToWorker>(stream, *step),
        [1, step, stream @ ..] => frames::<FromWorker>(stream, *step),
        [2, step, stream @ ..] => frames::<WorkerConfig>(stream, *step),
        [_, lines @ ..] => commands(lines),
        [] => {}
    }
}

fn frames<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(stream: &[u8], step: u8) {
    let mut decoder = FrameDecoder::new();
    let mut whole = FrameDecoder::new();
    whole.push(stream);
    for piece in stream.chunks(usize::from(step).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next::<T>() {
                Ok(Some(message)) => {
                    // Cut in any way, the frames are the same.
                    assert_eq!(whole.next::<T>().expect("it read in pieces"), Some(message));
                }
                Ok(None) => break,
                // The stream is given up then.
                Err(error) => {
                    assert!(error.to_string().len() <= 2 * stream.len() + 2_000);
                    return;
                }
            }
        }
    }
}

fn commands(lines: &[u8]) {
    let now = Instant::now();
    let listen = "127.0.0.1:40000".parse().expect("an address");
    let mut worker: Option<Worker> = None;
    for line in lines.split(|b| *b == b'\n').take(MAX_COMMANDS) {
        let Ok(command) = serde_json::from_slice::<MediaCommand>(line) else { continue };
        let room = RoomId::new("room").expect("an id");
        let message = ToWorker::Request { id: 1, room: room.clone(), command: command.clone() };
        let bytes = encode(&message).expect("what was read fits a frame");
        assert!(bytes.len() <= MAX_FRAME_BYTES + 4);
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        assert_eq!(decoder.next::<ToWorker>().expect("what is written reads"), Some(message));

        let worker = worker.get_or_insert_with(|| {
            Worker::new(WorkerConfig::new(listen), listen, now, [7; 32]).expect("a worker can be made")
        });
        let first = worker.handle_request(now, &room, command.clone());
        let load = worker.load();
        assert_eq!(load.panics, 0, "a panic was caught: {first:?}");
        let answer = FromWorker::Answer { id: 1, result: first.clone() };
        let bytes = encode(&answer).expect("an answer fits a frame");
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        assert_eq!(decoder.next::<FromWorker>().expect("what is written reads"), Some(answer));
        // Creating commands are idempotent.
        let creates = matches!(
            command,
            MediaCommand::CreateRouter
                | MediaCommand::CreateTransport { .. }
                | MediaCommand::Produce { .. }
                | MediaCommand::Consume { .. }
        );
        if creates && first.is_ok() {
            assert_eq!(worker.handle_request(now, &room, command), first, "asked twice");
            let after = worker.load();
            assert_eq!(
                (after.routers, after.transports, after.producers, after.consumers),
                (load.routers, load.transports, load.producers, load.consumers)
            );
        }
    }
    if let Some(mut worker) = worker {
        worker.close(now);
        let load = worker.load();
        assert_eq!((load.routers, load.transports, load.producers, load.consumers), (0, 0, 0, 0));
    }
}
