//! Whether a PostgreSQL server takes connections, asked as a client asks: it listens before it has read its log through.
//!
//! Messages are those of the frontend/backend protocol 3.0 (PostgreSQL documentation, "Message Formats").

use moat_model::state::PostgresWorkload;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Protocol 3.0.
const VERSION: i32 = 3 << 16;
/// SQLSTATE of a server that starts, recovers or ends (`cannot_connect_now`).
const NOT_NOW: &str = "57P03";
/// The longest answer that is read.
const LONGEST: usize = 4096;

/// Begins a session and gives it up as soon as the server has answered. The error says why there is none to be had yet.
pub async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), server: &PostgresWorkload) -> Result<(), String> {
    let broken = |error: std::io::Error| format!("no answer ({error})");
    stream.write_all(&startup(server)).await.map_err(broken)?;
    let mut head = [0; 5];
    stream.read_exact(&mut head).await.map_err(broken)?;
    let [kind, length @ ..] = head;
    if !matches!(kind, b'R' | b'E') {
        return Err("what listens there is no PostgreSQL server".to_owned());
    }
    let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or_default().saturating_sub(4);
    let mut body = vec![0; length.min(LONGEST)];
    // Read to its end: closing with something unread resets the connection, and the server writes that to its log.
    stream.read_exact(&mut body).await.map_err(broken)?;
    match kind {
        // Asks for the password: that is what a session begins with.
        b'R' => Ok(()),
        _ => match field(&body, b'C') {
            // Full, or whatever else: it takes connections.
            Some(state) if state != NOT_NOW => Ok(()),
            _ => Err(field(&body, b'M').unwrap_or_else(|| "it does not take connections yet".to_owned())),
        },
    }
}

fn startup(server: &PostgresWorkload) -> Vec<u8> {
    let mut body = VERSION.to_be_bytes().to_vec();
    for text in ["user", &server.user, "database", &server.database] {
        body.extend(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    let length = i32::try_from(body.len() + 4).unwrap_or(i32::MAX);
    [length.to_be_bytes().to_vec(), body].concat()
}

/// A field of an ErrorResponse.
fn field(body: &[u8], kind: u8) -> Option<String> {
    let found = body.split(|byte| *byte == 0).find(|field| field.first() == Some(&kind))?;
    Some(String::from_utf8_lossy(&found[1..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use moat_model::Secret;

    async fn answered(bytes: &[u8]) -> Result<(), String> {
        let server = PostgresWorkload { major: None, database: "d".to_owned(), user: "u".to_owned(), password: Secret::new("never sent") };
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(bytes).await.unwrap();
        let said = ask(&mut ours, &server).await;
        drop(ours);
        let mut sent = Vec::new();
        theirs.read_to_end(&mut sent).await.unwrap();
        assert_eq!(sent, b"\0\0\0\x1b\0\x03\0\0user\0u\0database\0d\0\0");
        said
    }

    fn error(fields: &str) -> Vec<u8> {
        let length = u32::try_from(fields.len() + 4).unwrap();
        [b"E".as_slice(), &length.to_be_bytes(), fields.as_bytes()].concat()
    }

    #[tokio::test]
    async fn answers_are_understood() {
        assert_eq!(answered(b"R\0\0\0\x0c\0\0\0\x0aSCRA").await, Ok(()));
        let starting = error("SFATAL\0C57P03\0Mthe database system is starting up\0\0");
        assert_eq!(answered(&starting).await, Err("the database system is starting up".to_owned()));
        assert_eq!(answered(&error("SFATAL\0C53300\0Mtoo many clients\0\0")).await, Ok(()));
        assert!(answered(&error("\0")).await.is_err());
        assert!(answered(b"HTTP/1.1 400").await.is_err());
    }
}
