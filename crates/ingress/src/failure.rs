//! Why an instance gave no answer, in words for the 502 page.

use crate::received::BodyError;
use http::StatusCode;
use std::error::Error as _;
use std::io;
use std::time::Duration;

/// What went wrong between here and an instance.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// No connection.
    #[error("its instance refused the connection on port {port}: no program listens there")]
    Refused {
        /// The HTTP port.
        port: u16,
    },
    /// No connection, for another reason.
    #[error("its instance can't be connected to on port {port}")]
    Unreachable {
        /// The HTTP port.
        port: u16,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// No connection in time.
    #[error("its instance did not accept the connection on port {port} in time")]
    ConnectLate {
        /// The HTTP port.
        port: u16,
    },
    /// No response head in time: 504.
    #[error("its instance did not respond in time")]
    ResponseLate,
    /// The connection ended before a response began.
    #[error("its instance closed the connection before it responded")]
    Closed(#[source] hyper::Error),
    /// Not HTTP/1.1, or a head that breaks its rules.
    #[error("its instance responded with something that is not HTTP")]
    Malformed(#[source] hyper::Error),
    /// Something else than `101` to a WebSocket over HTTP/2, which has no word for that.
    #[error("its instance answered a WebSocket's opening with status {0}")]
    NotSwitched(StatusCode),
    /// `101` without having been asked to switch.
    #[error("its instance switched protocols without being asked to")]
    Switched,
    /// The client's request ended early: 400.
    #[error("the request's body ended early")]
    ClientBody(#[source] hyper::Error),
    /// The client's request is longer than it may be: 413.
    #[error("the request's body is longer than the {0} bytes that are taken here")]
    ClientLong(u64),
    /// The client sent nothing more of its request: 408.
    #[error("nothing more of the request's body came for {} s", .0.as_secs())]
    ClientPaused(Duration),
    /// Everything else that a connection can suffer.
    #[error("the connection to its instance broke")]
    Broken(#[source] hyper::Error),
}

impl Failure {
    pub fn of_dial(error: io::Error, port: u16) -> Self {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            Self::Refused { port }
        } else if error.kind() == io::ErrorKind::TimedOut {
            Self::ConnectLate { port }
        } else {
            Self::Unreachable { port, source: error }
        }
    }

    pub fn of_exchange(error: hyper::Error) -> Self {
        if error.is_user() {
            match error.source().and_then(|cause| cause.downcast_ref()) {
                Some(BodyError::Long(most)) => Self::ClientLong(*most),
                Some(BodyError::Paused(pause)) => Self::ClientPaused(*pause),
                Some(BodyError::Broken(_)) | None => Self::ClientBody(error),
            }
        } else if error.is_parse() {
            Self::Malformed(error)
        } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
            Self::Closed(error)
        } else {
            Self::Broken(error)
        }
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::ResponseLate => StatusCode::GATEWAY_TIMEOUT,
            Self::ClientBody(_) => StatusCode::BAD_REQUEST,
            Self::ClientLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ClientPaused(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::ConnectLate { .. }
            | Self::Closed(_)
            | Self::Malformed(_)
            | Self::Switched
            | Self::NotSwitched(_)
            | Self::Broken(_) => StatusCode::BAD_GATEWAY,
        }
    }

    /// Whether it is the client's doing.
    pub fn is_clients(&self) -> bool {
        matches!(self, Self::ClientBody(_) | Self::ClientLong(_) | Self::ClientPaused(_))
    }

    /// The same in a word.
    pub fn reason(&self) -> &'static str {
        if matches!(self, Self::ClientLong(_)) {
            "body-too-long"
        } else if matches!(self, Self::ClientPaused(_)) {
            "body-paused"
        } else {
            "bad-gateway"
        }
    }

    /// What the service's owner can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused { .. } | Self::Unreachable { .. } | Self::ConnectLate { .. } => {
                "The program must listen on 0.0.0.0 (not 127.0.0.1), on the port in PORT."
            }
            Self::ResponseLate => "The program accepted the request and stayed silent; its logs may say why.",
            Self::Closed(_) | Self::Broken(_) => "The program may have crashed or restarted; its logs say why.",
            Self::Malformed(_) | Self::Switched => {
                "The port in PORT must speak plain HTTP/1.1 (for gRPC plain HTTP/2), not TLS or another protocol."
            }
            Self::NotSwitched(_) => "The program does not serve WebSockets at this path.",
            Self::ClientBody(_) | Self::ClientPaused(_) => "Send the request again.",
            Self::ClientLong(_) => "Whoever runs this machine says how long it may be: moat ingress max-body=20g.",
        }
    }
}
