//! What a request comes to, other than a transfer: silence or an error, each counted under its word.

use crate::tftp::NotServed;
use crate::tftp::admission::Silence;
use crate::tftp::wire::{ErrorCode, Mode, Operation, Request, RequestError};

/// What a request comes to, other than a transfer.
pub enum Refusal {
    Silence(Silence),
    Error(ErrorCode, &'static str, /* counted as */ &'static str),
}

impl From<Silence> for Refusal {
    fn from(silence: Silence) -> Self {
        Refusal::Silence(silence)
    }
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::NotARequest => Refusal::Silence(Silence::NotARequest),
            RequestError::NameTooLong => NOT_FOUND,
            RequestError::Malformed | RequestError::TooLong => {
                Refusal::Error(ErrorCode::IllegalOperation, "malformed request", "malformed")
            }
            RequestError::UnknownMode => {
                Refusal::Error(ErrorCode::IllegalOperation, "unknown transfer mode", "mode-refused")
            }
        }
    }
}

/// One text whatever the reason, so that nothing can be learnt from it.
const NOT_FOUND: Refusal = Refusal::Error(ErrorCode::FileNotFound, "file not found", "not-found");

/// What a name that is not served comes to.
pub fn refuse_source(reason: NotServed) -> Refusal {
    match reason {
        NotServed::NotFound | NotServed::Refused => NOT_FOUND,
        NotServed::NotYet => Refusal::Silence(Silence::NotYet),
    }
}

/// Whether it asks for what we do: files to read, in octets or as text.
pub fn refuse_operation(request: &Request<'_>) -> Result<(), Refusal> {
    let (message, word) = match (request.operation, request.mode) {
        (Operation::Read, Mode::Octet | Mode::Netascii) => return Ok(()),
        (Operation::Write, _) => ("this server is read-only", "write-refused"),
        (Operation::Read, Mode::Mail) => ("mail is not supported", "mode-refused"),
    };
    Err(Refusal::Error(ErrorCode::IllegalOperation, message, word))
}
