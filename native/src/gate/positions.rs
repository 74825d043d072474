//! Consumer positions: how far a reader of a topic has come, by its name, kept in the log.

use serde::Deserialize;

use super::core::{Core, Cycle};
use super::{Answer, Request, error_body};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    consumer: String,
    topic: String,
    /// Null forgets the position.
    #[serde(deserialize_with = "Option::deserialize")]
    offset: Option<u64>,
}

impl Core {
    /// Note a position with this cycle's commit; it is answered when that is durable.
    pub(super) fn note_position(&mut self, cycle: &mut Cycle, request: Request) {
        let (status, body) = match self.check_position(&request.body) {
            Ok(position) => {
                match position.offset {
                    Some(offset) => self.log.note_position(&position.consumer, &position.topic, offset),
                    None => self.log.forget_position(&position.consumer, &position.topic),
                }
                (200, serde_json::json!({"offset": position.offset}).to_string().into_bytes())
            }
            Err(refusal) => (422, refusal),
        };
        cycle.answers.push(Answer::plain(request.handle, status, body));
    }

    /// The position, or the body of its refusal.
    fn check_position(&self, body: &[u8]) -> Result<Position, Vec<u8>> {
        let invalid = |message: &str| error_body("invalid_position", message, None);
        let position: Position = serde_json::from_slice(body)
            .map_err(|_| invalid("a position is an object with consumer, topic and offset"))?;
        let Position { consumer, topic, offset } = &position;
        if let Some(offset) = offset {
            let checked = self.log.check_position(consumer, topic, *offset);
            checked.map_err(|error| invalid(&error.to_string()))?;
            let room = self.log.check_position_room(consumer, topic);
            room.map_err(|error| error_body("too_many_positions", &error.to_string(), None))?;
        }
        Ok(position)
    }
}
