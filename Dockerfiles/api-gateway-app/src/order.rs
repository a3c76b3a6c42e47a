//! An order and the rules it keeps, wherever it comes from.
//!
//! The same file in api-gateway-app and billing-app (`ci/services-test` compares them): what the
//! gateway accepts, billing can record. Each value may be a JSON number or the same number in a
//! string, and is never handled as a binary fraction.

use rust_decimal::Decimal;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Digits before the decimal point of an amount.
const AMOUNT_INTEGER_DIGITS: usize = 15;
/// Digits after it.
const AMOUNT_FRACTION_DIGITS: usize = 4;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// From 1 to `i64::MAX`.
    #[serde(deserialize_with = "positive_i64")]
    pub(crate) user_id: i64,
    /// From 1 to `i32::MAX`.
    #[serde(deserialize_with = "positive_i32")]
    pub(crate) number_of_items: i32,
    /// Zero or more, in whatever currency the user pays in.
    #[serde(deserialize_with = "amount", serialize_with = "amount_as_text")]
    pub(crate) total_amount: Decimal,
}

fn positive_i64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    positive_integer(&number_text(deserializer)?).map_err(D::Error::custom)
}

fn positive_i32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    let value = positive_integer(&number_text(deserializer)?).map_err(D::Error::custom)?;
    i32::try_from(value).map_err(|_too_large| D::Error::custom("is too large"))
}

fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Decimal, D::Error> {
    parse_amount(&number_text(deserializer)?).map_err(D::Error::custom)
}

fn amount_as_text<S: Serializer>(amount: &Decimal, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(amount)
}

/// The digits as they were written, from a JSON number or a JSON string.
fn number_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let raw = Box::<RawValue>::deserialize(deserializer)?;
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'"') => serde_json::from_str(text).map_err(D::Error::custom),
        Some(b'-' | b'0'..=b'9') => Ok(text.to_owned()),
        _ => Err(D::Error::custom("must be a number or a number in a string")),
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn positive_integer(text: &str) -> Result<i64, &'static str> {
    if !is_digits(text) {
        return Err("must be a whole number above zero, in digits only");
    }
    match text.parse() {
        Ok(0) => Err("must be above zero"),
        Ok(value) => Ok(value),
        Err(_too_large) => Err("is too large"),
    }
}

fn parse_amount(text: &str) -> Result<Decimal, &'static str> {
    const SHAPE: &str = "must be zero or more, in digits with an optional decimal point";
    let (integer, fraction) = match text.split_once('.') {
        Some((integer, fraction)) if is_digits(fraction) => (integer, fraction),
        Some(_) => return Err(SHAPE),
        None => (text, ""),
    };
    if !is_digits(integer) {
        return Err(SHAPE);
    }
    if integer.len() > AMOUNT_INTEGER_DIGITS {
        return Err("is too large");
    }
    if fraction.len() > AMOUNT_FRACTION_DIGITS {
        return Err("has too many digits after the decimal point");
    }
    Decimal::from_str_exact(text).map_err(|_inexact| SHAPE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str) -> Result<Order, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn strings_and_numbers_mean_the_same() {
        let strings = r#"{"user_id":"20","number_of_items":"99","total_amount":"250.10"}"#;
        let numbers = r#"{"user_id":20,"number_of_items":99,"total_amount":250.10}"#;
        let order = parse(strings).unwrap();
        assert_eq!(order, parse(numbers).unwrap());
        assert_eq!(
            serde_json::to_string(&order).unwrap(),
            r#"{"user_id":20,"number_of_items":99,"total_amount":"250.10"}"#
        );
    }

    #[test]
    fn what_is_not_an_order_is_refused() {
        let good = [
            ("user_id", "20"),
            ("number_of_items", "99"),
            ("total_amount", "250"),
        ];
        let wrong = [
            "null",
            "true",
            "{}",
            "[]",
            "[1]",
            "-1",
            "1e3",
            "1E400000000",
            "\"\"",
            "\" 1\"",
            "\"-1\"",
            "\"+1\"",
            "\"NaN\"",
            "\"inf\"",
            "\"0x10\"",
            "\"1_000\"",
            "\"1,5\"",
            "\"\\u0000\"",
            "\"1\\u0000\"",
            "\".5\"",
            "\"5.\"",
            "\"1.2.3\"",
            "\"١\"",
            "99999999999999999999999999999999",
            "0.123456789",
        ];
        for (broken, _) in good {
            for value in wrong {
                let fields = good.map(|(name, fine)| {
                    format!("\"{name}\":{}", if name == broken { value } else { fine })
                });
                let json = format!("{{{}}}", fields.join(","));
                assert!(parse(&json).is_err(), "accepted {json}");
            }
        }
        for json in [
            r#"{"user_id":0,"number_of_items":1,"total_amount":1}"#,
            r#"{"user_id":1.5,"number_of_items":1,"total_amount":1}"#,
            r#"{"user_id":9223372036854775808,"number_of_items":1,"total_amount":1}"#,
            r#"{"user_id":1,"number_of_items":0,"total_amount":1}"#,
            r#"{"user_id":1,"number_of_items":2147483648,"total_amount":1}"#,
            r#"{"user_id":1,"number_of_items":1}"#,
        ] {
            assert!(parse(json).is_err(), "accepted {json}");
        }
    }

    proptest! {
        #[test]
        fn an_amount_keeps_every_digit(integer in "0|[1-9][0-9]{0,14}", fraction in "[0-9]{1,4}") {
            let text = format!("{integer}.{fraction}");
            prop_assert_eq!(parse_amount(&text).unwrap().to_string(), text);
        }

        #[test]
        fn an_order_survives_the_queue(user_id in 1..=i64::MAX, number_of_items in 1..=i32::MAX, cents in 0..=i64::MAX / 10_000) {
            let order = Order { user_id, number_of_items, total_amount: Decimal::new(cents, 2) };
            let json = serde_json::to_string(&order).unwrap();
            prop_assert_eq!(parse(&json).unwrap(), order);
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = parse_amount(&text);
            let _ = positive_integer(&text);
            let value = serde_json::to_string(&text).unwrap();
            let _ = parse(&format!(r#"{{"user_id":{value},"number_of_items":{value},"total_amount":{value}}}"#));
        }
    }
}
