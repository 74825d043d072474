//! Consumer positions: how far a reader of a topic has come, by its name, kept in the log.

use serde::Deserialize;

use super::core::{Core, Cycle};
use super::{Answer, Request, error_body};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    consumer: String,
    topic: String,
    offset: u64,
}

impl Core {
    /// Note a position with this cycle's commit; it is answered when that is durable.
    pub(super) fn note_position(&mut self, cycle: &mut Cycle, request: Request) {
        let (status, body) = match self.check_position(&request.body) {
            Ok(position) => {
                self.log.note_position(&position.consumer, &position.topic, position.offset);
                (200, serde_json::json!({"offset": position.offset}).to_string().into_bytes())
            }
            Err(message) => (422, error_body("invalid_position", &message, None)),
        };
        cycle.answers.push(Answer::plain(request.handle, status, body));
    }

    fn check_position(&self, body: &[u8]) -> Result<Position, String> {
        let position: Position = serde_json::from_slice(body)
            .map_err(|_| "a position is an object with consumer, topic and offset".to_string())?;
        self.log
            .check_position(&position.consumer, &position.topic, position.offset)
            .map_err(|e| e.to_string())?;
        Ok(position)
    }
}
