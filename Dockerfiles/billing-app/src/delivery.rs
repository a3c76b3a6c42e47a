//! Reads a message from the queue: what order it holds and under which id it is recorded.

use lapin::BasicProperties;
use lapin::types::AMQPValue;
use thiserror::Error;
use uuid::Uuid;

use crate::order::Order;
use crate::service::request_id::REQUEST_ID;

/// Why a message can never be recorded, however often it is delivered.
#[derive(Debug, Error)]
pub(crate) enum PoisonError {
    #[error("the message has no message_id, so a second delivery of it could not be recognised")]
    NoId,
    #[error("the message_id is not a UUID")]
    InvalidId(#[source] uuid::Error),
    #[error("the body is not an order")]
    NotAnOrder(#[source] serde_json::Error),
}

#[derive(Debug)]
pub(crate) struct IdentifiedOrder {
    pub(crate) message_id: Uuid,
    pub(crate) order: Order,
}

pub(crate) fn decode(
    properties: &BasicProperties,
    body: &[u8],
) -> Result<IdentifiedOrder, PoisonError> {
    let id = properties.message_id().as_ref().ok_or(PoisonError::NoId)?;
    Ok(IdentifiedOrder {
        message_id: Uuid::parse_str(id.as_str()).map_err(PoisonError::InvalidId)?,
        order: serde_json::from_slice(body).map_err(PoisonError::NotAnOrder)?,
    })
}

/// The id of the HTTP request that the message comes from, for the log; empty when there is none.
pub(crate) fn request_id(properties: &BasicProperties) -> String {
    let header = properties
        .headers()
        .as_ref()
        .and_then(|headers| headers.inner().get(REQUEST_ID));
    match header {
        Some(AMQPValue::LongString(id)) => String::from_utf8_lossy(id.as_bytes()).into_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldTable;

    use super::*;

    const ID: &str = "0193a1b2-0000-7000-8000-000000000001";
    const BODY: &[u8] = br#"{"user_id":"20","number_of_items":"99","total_amount":"250"}"#;

    fn with_id(id: &str) -> BasicProperties {
        BasicProperties::default().with_message_id(id.into())
    }

    #[test]
    fn a_message_from_the_gateway_is_an_order() {
        let decoded = decode(&with_id(ID), BODY).unwrap();
        assert_eq!(decoded.message_id.to_string(), ID);
        assert_eq!(decoded.order.user_id, 20);
    }

    #[test]
    fn what_can_never_be_recorded_is_poison() {
        let none = BasicProperties::default();
        assert!(matches!(decode(&none, BODY), Err(PoisonError::NoId)));
        assert!(matches!(
            decode(&with_id("20"), BODY),
            Err(PoisonError::InvalidId(_))
        ));
        for body in [
            b"".as_slice(),
            b"{}",
            b"\xff\xfe",
            b"[1,2",
            BODY.split_last().unwrap().1,
        ] {
            assert!(matches!(
                decode(&with_id(ID), body),
                Err(PoisonError::NotAnOrder(_))
            ));
        }
    }

    #[test]
    fn the_request_id_is_optional() {
        assert_eq!(request_id(&BasicProperties::default()), "");
        let mut headers = FieldTable::default();
        headers.insert(REQUEST_ID.into(), AMQPValue::LongString("abc".into()));
        assert_eq!(
            request_id(&BasicProperties::default().with_headers(headers)),
            "abc"
        );
    }
}
