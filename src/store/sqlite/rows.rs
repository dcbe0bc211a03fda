//! Rows: how each change is written, and how each kind of record is read back.

use std::net::Ipv4Addr;

use rusqlite::types::Value;
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::boot::profile::runs::Record as ProfileRecord;
use crate::bridge_log::event::BridgeEvent;
use crate::clock::Timestamp;
use crate::dhcp::lease::{Binding, BindingState, ClientKey};
use crate::net::MacAddr;
use crate::node::install::first_boot::FirstBoot;
use crate::node::timeline::TimelineEvent;
use crate::node::{Node, NodeId};
use crate::operator::access::tokens::{SecretHash, Token};
use crate::operator::audit::{AuditEntry, AuditRecord};
use crate::operator::idempotency::{KeptAnswer, RequestKey};
use crate::store::Change;

pub(super) fn apply(connection: &Connection, change: &Change) -> Result<(), rusqlite::Error> {
    let json = |error: serde_json::Error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
    match change {
        Change::PutBinding(binding) => {
            let (kind, key): (&str, &[u8]) = match &binding.key {
                ClientKey::Mac(mac) => ("mac", &mac.0),
                ClientKey::ClientId(bytes) => ("client-id", bytes),
            };
            connection
                .prepare_cached("INSERT OR REPLACE INTO bindings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")?
                .execute(params![
                    u32::from(binding.address),
                    binding.mac.to_string(),
                    kind,
                    key,
                    binding.client_id,
                    binding.hostname,
                    state_text(binding.state),
                    millis(binding.granted_at),
                    millis(binding.expires_at),
                ])?;
        }
        Change::DropBinding { address } => {
            connection
                .prepare_cached("DELETE FROM bindings WHERE address = ?")?
                .execute([u32::from(*address)])?;
        }
        Change::PutNode(node) => {
            connection.prepare_cached("INSERT OR REPLACE INTO nodes VALUES (?, ?, ?, ?, ?)")?.execute(
                params![
                    node.id.to_string(),
                    node.name.as_ref().map(|name| name.as_str()),
                    node.state.to_string(),
                    millis(node.created_at),
                    serde_json::to_string(node).map_err(json)?,
                ],
            )?;
        }
        Change::DropNode(id) => {
            let id = id.to_string();
            connection.prepare_cached("DELETE FROM nodes WHERE id = ?")?.execute([&id])?;
            connection.prepare_cached("DELETE FROM events WHERE node = ?")?.execute([&id])?;
            connection.prepare_cached("DELETE FROM first_boots WHERE node = ?")?.execute([&id])?;
        }
        Change::PutEvent(event) => {
            connection.prepare_cached("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?)")?.execute(
                params![
                    event.node.to_string(),
                    event.boot,
                    event.sequence,
                    millis(event.at),
                    serde_json::to_string(&event.happening).map_err(json)?,
                ],
            )?;
        }
        Change::DropBoot { node, boot } => {
            connection
                .prepare_cached("DELETE FROM events WHERE node = ? AND boot = ?")?
                .execute(params![node.to_string(), boot])?;
        }
        Change::PutSecret { name, value } => {
            connection
                .prepare_cached("INSERT OR REPLACE INTO secrets VALUES (?, ?)")?
                .execute(params![name, value])?;
        }
        Change::PutToken(token) => {
            connection.prepare_cached("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?, ?, ?)")?.execute(
                params![
                    token.id.to_string(),
                    token.name.as_str(),
                    token.role.as_str(),
                    token.hash.0.as_slice(),
                    millis(token.created_at),
                    token.expires_at.map(millis),
                ],
            )?;
        }
        Change::DropToken(id) => {
            connection.prepare_cached("DELETE FROM tokens WHERE id = ?")?.execute([id.to_string()])?;
        }
        Change::PutAudit(record) => {
            connection.prepare_cached("INSERT OR REPLACE INTO audit VALUES (?, ?, ?)")?.execute(params![
                sequence_number(record.sequence),
                millis(record.at),
                &*record.entry
            ])?;
        }
        Change::DropAuditBelow { sequence } => {
            connection
                .prepare_cached("DELETE FROM audit WHERE sequence < ?")?
                .execute([sequence_number(*sequence)])?;
        }
        Change::PutAnswer(answer) => {
            connection.prepare_cached("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)")?.execute(
                params![
                    answer.key.who,
                    answer.key.key,
                    answer.request.to_string(),
                    millis(answer.kept_until),
                    serde_json::to_string(&answer.answer).map_err(json)?,
                ],
            )?;
        }
        Change::PutFirstBoot(first_boot) => {
            connection.prepare_cached("INSERT OR REPLACE INTO first_boots VALUES (?, ?)")?.execute(
                params![first_boot.node.to_string(), serde_json::to_string(first_boot).map_err(json)?,],
            )?;
        }
        Change::DropFirstBoot(node) => {
            connection
                .prepare_cached("DELETE FROM first_boots WHERE node = ?")?
                .execute([node.to_string()])?;
        }
        Change::PutBridgeEvent(event) => {
            connection.prepare_cached("INSERT OR REPLACE INTO bridge_events VALUES (?, ?, ?)")?.execute(
                params![
                    sequence_number(event.sequence),
                    millis(event.at),
                    serde_json::to_string(&event.happening).map_err(json)?,
                ],
            )?;
        }
        Change::DropBridgeEventsBelow { sequence } => {
            connection
                .prepare_cached("DELETE FROM bridge_events WHERE sequence < ?")?
                .execute([sequence_number(*sequence)])?;
        }
        Change::ProfileRecord { key, record: Some(record) } => {
            connection
                .prepare_cached("INSERT OR REPLACE INTO profile_records VALUES (?, ?)")?
                .execute(params![key, serde_json::to_string(record).map_err(json)?])?;
        }
        Change::ProfileRecord { key, record: None } => {
            connection.prepare_cached("DELETE FROM profile_records WHERE key = ?")?.execute([key])?;
        }
        Change::DropAnswer(RequestKey { who, key }) => {
            connection
                .prepare_cached("DELETE FROM answers WHERE who = ? AND key = ?")?
                .execute(params![who, key])?;
        }
    }
    Ok(())
}

fn millis(at: Timestamp) -> i64 {
    i64::try_from(at.as_millis()).unwrap_or(i64::MAX)
}

fn sequence_number(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

fn state_text(state: BindingState) -> &'static str {
    match state {
        BindingState::Bound => "bound",
        BindingState::Released => "released",
        BindingState::Quarantined => "quarantined",
    }
}

pub(super) fn decode_binding(row: &[Value]) -> Result<Binding, String> {
    let [address, mac, kind, key, client_id, hostname, state, granted_at, expires_at] = row else {
        return Err("a column is missing".to_owned());
    };
    let mac: MacAddr = text(mac, "mac")?.parse().map_err(|_| "the mac is none".to_owned())?;
    let key = blob(key, "key")?;
    Ok(Binding {
        address: Ipv4Addr::from(number::<u32>(address, "address")?),
        key: match text(kind, "key_kind")? {
            "mac" => ClientKey::Mac(MacAddr(key.try_into().map_err(|_| "the key is no mac".to_owned())?)),
            "client-id" => ClientKey::ClientId(key.to_vec()),
            other => return Err(format!("{other:?} is no kind of key")),
        },
        mac,
        client_id: optional(client_id)
            .map(|value| blob(value, "client_id").map(<[u8]>::to_vec))
            .transpose()?,
        hostname: optional(hostname).map(|value| text(value, "hostname").map(str::to_owned)).transpose()?,
        state: match text(state, "state")? {
            "bound" => BindingState::Bound,
            "released" => BindingState::Released,
            "quarantined" => BindingState::Quarantined,
            other => return Err(format!("{other:?} is no state of a binding")),
        },
        granted_at: Timestamp::from_millis(number(granted_at, "granted_at")?),
        expires_at: Timestamp::from_millis(number(expires_at, "expires_at")?),
    })
}

pub(super) fn decode_node(row: &[Value]) -> Result<Node, String> {
    let [id, record] = row else {
        return Err("a column is missing".to_owned());
    };
    let node: Node = serde_json::from_str(text(record, "record")?).map_err(|error| error.to_string())?;
    if node.id == node_id(id)? { Ok(node) } else { Err("the record is another node's".to_owned()) }
}

pub(super) fn decode_event(row: &[Value]) -> Result<TimelineEvent, String> {
    let [node, boot, sequence, at, happening] = row else {
        return Err("a column is missing".to_owned());
    };
    Ok(TimelineEvent {
        node: node_id(node)?,
        boot: number(boot, "boot")?,
        sequence: number(sequence, "sequence")?,
        at: Timestamp::from_millis(number(at, "at")?),
        happening: serde_json::from_str(text(happening, "happening")?).map_err(|error| error.to_string())?,
    })
}

pub(super) fn decode_secret(row: &[Value]) -> Result<(String, Vec<u8>), String> {
    let [name, value] = row else {
        return Err("a column is missing".to_owned());
    };
    Ok((text(name, "name")?.to_owned(), blob(value, "value")?.to_vec()))
}

pub(super) fn decode_token(row: &[Value]) -> Result<Token, String> {
    let [id, name, role, hash, created_at, expires_at] = row else {
        return Err("a column is missing".to_owned());
    };
    let hash = blob(hash, "hash")?.try_into().map_err(|_| "the hash has not 32 bytes".to_owned())?;
    Ok(Token {
        id: text(id, "id")?.parse().map_err(|()| "the id is none".to_owned())?,
        name: text(name, "name")?.parse().map_err(|error| format!("{error}"))?,
        role: text(role, "role")?.parse().map_err(|error| format!("{error}"))?,
        hash: SecretHash(hash),
        created_at: Timestamp::from_millis(number(created_at, "created_at")?),
        expires_at: optional(expires_at)
            .map(|value| number(value, "expires_at").map(Timestamp::from_millis))
            .transpose()?,
    })
}

pub(super) fn decode_audit(row: &[Value]) -> Result<AuditRecord, String> {
    let [sequence, at, entry] = row else {
        return Err("a column is missing".to_owned());
    };
    let entry = text(entry, "entry")?;
    serde_json::from_str::<AuditEntry>(entry).map_err(|error| error.to_string())?;
    Ok(AuditRecord {
        sequence: number(sequence, "sequence")?,
        at: Timestamp::from_millis(number(at, "at")?),
        entry: entry.into(),
    })
}

pub(super) fn decode_bridge_event(row: &[Value]) -> Result<BridgeEvent, String> {
    let [sequence, at, happening] = row else {
        return Err("a column is missing".to_owned());
    };
    Ok(BridgeEvent {
        sequence: number(sequence, "sequence")?,
        at: Timestamp::from_millis(number(at, "at")?),
        happening: serde_json::from_str(text(happening, "happening")?).map_err(|error| error.to_string())?,
    })
}

pub(super) fn decode_profile_record(row: &[Value]) -> Result<ProfileRecord, String> {
    let [key, record] = row else {
        return Err("a column is missing".to_owned());
    };
    let record: ProfileRecord =
        serde_json::from_str(text(record, "record")?).map_err(|error| error.to_string())?;
    if record.key() == text(key, "key")? { Ok(record) } else { Err("the record has another key".to_owned()) }
}

pub(super) fn decode_first_boot(row: &[Value]) -> Result<FirstBoot, String> {
    let [node, record] = row else {
        return Err("a column is missing".to_owned());
    };
    let first_boot: FirstBoot =
        serde_json::from_str(text(record, "record")?).map_err(|error| error.to_string())?;
    if first_boot.node == node_id(node)? {
        Ok(first_boot)
    } else {
        Err("the record is another node's".to_owned())
    }
}

pub(super) fn decode_answer(row: &[Value]) -> Result<KeptAnswer, String> {
    let [who, key, request, kept_until, answer] = row else {
        return Err("a column is missing".to_owned());
    };
    Ok(KeptAnswer {
        key: RequestKey { who: text(who, "who")?.to_owned(), key: text(key, "key")?.to_owned() },
        request: text(request, "request")?.parse().map_err(|error| format!("{error}"))?,
        kept_until: Timestamp::from_millis(number(kept_until, "kept_until")?),
        answer: serde_json::from_str(text(answer, "answer")?).map_err(|error| error.to_string())?,
    })
}

fn node_id(value: &Value) -> Result<NodeId, String> {
    Uuid::try_parse(text(value, "node id")?).map(NodeId).map_err(|error| error.to_string())
}

fn optional(value: &Value) -> Option<&Value> {
    (*value != Value::Null).then_some(value)
}

fn text<'a>(value: &'a Value, column: &str) -> Result<&'a str, String> {
    match value {
        Value::Text(text) => Ok(text),
        Value::Null | Value::Integer(_) | Value::Real(_) | Value::Blob(_) => {
            Err(format!("{column} is not text"))
        }
    }
}

fn blob<'a>(value: &'a Value, column: &str) -> Result<&'a [u8], String> {
    match value {
        Value::Blob(bytes) => Ok(bytes),
        Value::Null | Value::Integer(_) | Value::Real(_) | Value::Text(_) => {
            Err(format!("{column} is not bytes"))
        }
    }
}

fn number<T: TryFrom<i64>>(value: &Value, column: &str) -> Result<T, String> {
    match value {
        Value::Integer(number) => T::try_from(*number).map_err(|_| format!("{column} is out of range")),
        Value::Null | Value::Real(_) | Value::Text(_) | Value::Blob(_) => {
            Err(format!("{column} is not a number"))
        }
    }
}
