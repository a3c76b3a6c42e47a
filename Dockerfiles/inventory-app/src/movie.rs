//! A movie and the rules it keeps.

use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use thiserror::Error;

/// In characters; the table checks the same limits.
pub(crate) const MAX_TITLE: usize = 255;
const MAX_DESCRIPTION: usize = 10_000;

/// A movie as it is stored and shown.
#[derive(Debug, Serialize, FromRow)]
pub(crate) struct Movie {
    id: i64,
    title: String,
    description: String,
}

/// What a client says about a movie, already checked.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Unchecked")]
pub(crate) struct MovieFields {
    pub(crate) title: String,
    pub(crate) description: String,
}

#[derive(Deserialize)]
struct Unchecked {
    title: String,
    description: String,
}

#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum InvalidMovie {
    #[error("the title must not be empty")]
    EmptyTitle,
    #[error("the title must not be longer than {MAX_TITLE} characters")]
    LongTitle,
    #[error("the description must not be longer than {MAX_DESCRIPTION} characters")]
    LongDescription,
    #[error("text must not contain the character U+0000")]
    Nul,
}

impl TryFrom<Unchecked> for MovieFields {
    type Error = InvalidMovie;

    fn try_from(fields: Unchecked) -> Result<Self, InvalidMovie> {
        if fields.title.trim().is_empty() {
            return Err(InvalidMovie::EmptyTitle);
        }
        check_text(&fields.title, MAX_TITLE, InvalidMovie::LongTitle)?;
        check_text(
            &fields.description,
            MAX_DESCRIPTION,
            InvalidMovie::LongDescription,
        )?;
        Ok(Self {
            title: fields.title,
            description: fields.description,
        })
    }
}

/// What PostgreSQL can store (no U+0000) and the table will take.
pub(crate) fn check_text(
    text: &str,
    longest: usize,
    too_long: InvalidMovie,
) -> Result<(), InvalidMovie> {
    if text.contains('\0') {
        return Err(InvalidMovie::Nul);
    }
    if text.chars().count() > longest {
        return Err(too_long);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(title: &str, description: &str) -> Result<(), InvalidMovie> {
        MovieFields::try_from(Unchecked {
            title: title.to_owned(),
            description: description.to_owned(),
        })
        .map(drop)
    }

    #[test]
    fn limits_count_characters() {
        assert_eq!(check(&"é".repeat(MAX_TITLE), ""), Ok(()));
        assert_eq!(
            check(&"é".repeat(MAX_TITLE + 1), ""),
            Err(InvalidMovie::LongTitle)
        );
        assert_eq!(check("a", &"é".repeat(MAX_DESCRIPTION)), Ok(()));
        assert_eq!(
            check("a", &"é".repeat(MAX_DESCRIPTION + 1)),
            Err(InvalidMovie::LongDescription)
        );
    }

    #[test]
    fn empty_titles_and_nul_are_refused() {
        assert_eq!(check("", ""), Err(InvalidMovie::EmptyTitle));
        assert_eq!(check(" \t", ""), Err(InvalidMovie::EmptyTitle));
        assert_eq!(check("a\0", ""), Err(InvalidMovie::Nul));
        assert_eq!(check("a", "\0"), Err(InvalidMovie::Nul));
    }
}
