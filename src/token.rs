//! The sources of readiness events, and the mio tokens under which they are registered.

use crate::ids::{ConnId, ListenerId, MAX_LISTENERS};
use mio::Token;

const STDIN: usize = 0;
const STDOUT: usize = 1;
const SIGNALS: usize = 2;
const CHANNEL: usize = 3;
const FIRST_LISTENER: usize = 4;
const FIRST_CONNECTION: usize = FIRST_LISTENER + MAX_LISTENERS as usize;

/// The source of a readiness event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The pipe from the VM.
    Stdin,
    /// The pipe to the VM.
    Stdout,
    /// The signal handler's pipe.
    Signals,
    /// The listener at which the VM connects to the channel for sockets.
    Channel,
    /// The listener with this number, which is below [`MAX_LISTENERS`].
    Listener(ListenerId),
    /// The connection with this number.
    Connection(ConnId),
}

impl From<Source> for Token {
    fn from(source: Source) -> Token {
        Token(match source {
            Source::Stdin => STDIN,
            Source::Stdout => STDOUT,
            Source::Signals => SIGNALS,
            Source::Channel => CHANNEL,
            Source::Listener(listener) => FIRST_LISTENER + listener as usize,
            Source::Connection(conn) => FIRST_CONNECTION + conn as usize,
        })
    }
}

impl From<Token> for Source {
    fn from(Token(number): Token) -> Source {
        match number {
            STDIN => Source::Stdin,
            STDOUT => Source::Stdout,
            SIGNALS => Source::Signals,
            CHANNEL => Source::Channel,
            FIRST_LISTENER..FIRST_CONNECTION => {
                Source::Listener((number - FIRST_LISTENER) as ListenerId)
            }
            _ => Source::Connection((number - FIRST_CONNECTION) as ConnId),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MAX_CONN;

    #[test]
    fn every_source_has_a_token_of_its_own() {
        for source in [
            Source::Stdin,
            Source::Stdout,
            Source::Signals,
            Source::Channel,
            Source::Listener(0),
            Source::Listener(MAX_LISTENERS - 1),
            Source::Connection(1),
            Source::Connection(MAX_CONN - 1),
        ] {
            assert_eq!(Source::from(Token::from(source)), source);
        }
    }
}
