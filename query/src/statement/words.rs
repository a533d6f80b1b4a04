//! The words of a statement and their places, and a cursor that reads them one after another.
//!
//! Every error that the cursor makes points at the word that was read and says what was expected.

use super::Named;
use crate::error::{Place, QueryError};
use crate::nearest::did_you_mean;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use tidemill_core::schema::Literal;

/// A statement cut into words; blanks and comments are dropped.
pub(crate) struct Words {
    tokens: Vec<TokenWithSpan>,
    end: Place,
}

impl Words {
    /// Cuts `sql` into words. Fails on text that is not closed, such as a lone quote.
    pub(crate) fn of(sql: &str) -> Result<Self, QueryError> {
        let tokens = Tokenizer::new(&GenericDialect {}, sql)
            .tokenize_with_location()
            .map_err(|e| {
                let place = Place {
                    line: e.location.line as u32,
                    column: e.location.column as u32,
                    length: 1,
                };
                QueryError::invalid(lower_first(&e.message)).at(place)
            })?;
        let tokens: Vec<_> = tokens
            .into_iter()
            .filter(|t| !matches!(t.token, Token::Whitespace(_) | Token::EOF))
            .collect();
        let end = tokens.last().map_or(
            Place {
                line: 1,
                column: 1,
                length: 0,
            },
            |last| Place {
                line: last.span.end.line as u32,
                column: last.span.end.column as u32,
                length: 0,
            },
        );
        Ok(Self { tokens, end })
    }

    /// The words as tokens.
    pub(crate) fn tokens(&self) -> &[TokenWithSpan] {
        &self.tokens
    }

    /// Where the text ends.
    pub(crate) fn end(&self) -> Place {
        self.end
    }

    /// Reads from the first word.
    pub(crate) fn cursor(&self) -> Cursor<'_> {
        Cursor {
            words: self,
            next: 0,
            half: false,
        }
    }

    /// Where `word` stands for the first time: as it is or, failing that, in other letters.
    pub(crate) fn place_of(&self, word: &str) -> Option<Place> {
        let is = |token: &Token, same: &dyn Fn(&str, &str) -> bool| match token {
            Token::Word(w) => same(&w.value, word),
            Token::SingleQuotedString(text) => same(text, word),
            _ => false,
        };
        let exact = self.tokens.iter().find(|t| is(&t.token, &|a, b| a == b));
        let found = exact.or_else(|| self.tokens.iter().find(|t| is(&t.token, &str::eq_ignore_ascii_case)));
        found.and_then(|t| Place::of_span(t.span))
    }

    /// The number of the word that covers `line` and `column`.
    pub(crate) fn index_at(&self, line: u64, column: u64) -> Option<usize> {
        self.tokens.iter().position(|t| {
            let (start, end) = (t.span.start, t.span.end);
            (start.line, start.column) <= (line, column) && (line, column) < (end.line, end.column)
        })
    }

    /// The place of the word with that number.
    pub(crate) fn place_at(&self, index: usize) -> Place {
        self.tokens
            .get(index)
            .and_then(|t| Place::of_span(t.span))
            .unwrap_or(self.end)
    }

    /// The error for more than one statement; points at the second.
    pub(crate) fn several_statements(&self) -> QueryError {
        let semicolon = self.tokens.iter().position(|t| t.token == Token::SemiColon);
        let place = semicolon.map_or(self.end, |at| self.place_at(at + 1));
        QueryError::invalid("one statement at a time: another one begins here").at(place)
    }
}

/// Reads words one after another.
pub(crate) struct Cursor<'w> {
    words: &'w Words,
    next: usize,
    /// Whether the first half of a `>>` is read.
    half: bool,
}

impl Cursor<'_> {
    fn token(&self) -> Option<&Token> {
        self.words.tokens.get(self.next).map(|t| &t.token)
    }

    /// The place of the next word.
    pub(crate) fn place(&self) -> Place {
        self.words.place_at(self.next)
    }

    /// The next word, if it is a word and not a number, a quoted text or a sign.
    pub(crate) fn peek_word(&self) -> Option<String> {
        match self.token()? {
            Token::Word(word) if word.quote_style.is_none() => Some(word.value.clone()),
            _ => None,
        }
    }

    /// Whether the next word or sign is `wanted`, in any letters.
    pub(crate) fn peek_is(&self, wanted: &str) -> bool {
        match self.token() {
            Some(Token::Word(word)) => word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted),
            Some(Token::SingleQuotedString(_)) | None => false,
            Some(other) => other.to_string() == wanted,
        }
    }

    /// Whether everything is read, but for a semicolon.
    pub(crate) fn at_end(&self) -> bool {
        self.words.tokens[self.next..]
            .iter()
            .all(|t| t.token == Token::SemiColon)
    }

    /// Passes over the next word.
    pub(crate) fn bump(&mut self) {
        self.next += 1;
    }

    /// Passes over the next word if it is `wanted`.
    pub(crate) fn accept(&mut self, wanted: &str) -> bool {
        let found = self.peek_is(wanted);
        if found {
            self.bump();
        }
        found
    }

    /// Passes over a `>`, also if it is one half of what the tokenizer takes for a `>>`.
    pub(crate) fn accept_closing_angle(&mut self) -> bool {
        match self.token() {
            Some(Token::ShiftRight) if !self.half => self.half = true,
            Some(Token::ShiftRight | Token::Gt) => {
                self.half = false;
                self.bump();
            }
            _ => return false,
        }
        true
    }

    /// A number, with a sign or without, or a text in single quotes.
    pub(crate) fn constant(&mut self, what: &str) -> Result<Literal, QueryError> {
        if let Some(Token::SingleQuotedString(text)) = self.token() {
            let text = Literal::Text(text.clone());
            self.bump();
            return Ok(text);
        }
        let sign = match self.token() {
            Some(Token::Minus) => "-",
            Some(Token::Plus) => "",
            Some(Token::Number(..)) => {
                let number = self.literal(what)?;
                return Ok(Literal::Number(number.replace('_', "")));
            }
            _ => return Err(self.expected(what, &[])),
        };
        self.bump();
        match self.token() {
            Some(Token::Number(..)) => {
                let number = self.literal(what)?.replace('_', "");
                Ok(Literal::Number(format!("{sign}{number}")))
            }
            _ => Err(self.expected("a number", &[])),
        }
    }

    /// Passes over `wanted`, or fails; `known` are the words that could stand here.
    pub(crate) fn expect(&mut self, wanted: &str, known: &[&str]) -> Result<(), QueryError> {
        match self.accept(wanted) {
            true => Ok(()),
            false => Err(self.expected(wanted, known)),
        }
    }

    /// The error that something else stands here; `known` are the words that could.
    pub(crate) fn expected(&self, what: &str, known: &[&str]) -> QueryError {
        let message = match self.token() {
            None | Some(Token::SemiColon) => format!("expected {what}, but the statement ends here"),
            Some(Token::Word(word)) => {
                let hint = did_you_mean(&word.value, known.iter().copied());
                format!("expected {what}, found '{}'{hint}", word.value)
            }
            Some(other) => format!("expected {what}, found {other}"),
        };
        QueryError::invalid(message).at(self.place())
    }

    /// Fails unless everything is read.
    pub(crate) fn end(&mut self) -> Result<(), QueryError> {
        self.end_or(&[])
    }

    /// Fails unless everything is read; `known` are the words that could have followed.
    pub(crate) fn end_or(&mut self, known: &[&str]) -> Result<(), QueryError> {
        if self.at_end() {
            return Ok(());
        }
        match self.token() {
            Some(Token::SemiColon) => Err(self.words.several_statements()),
            _ => Err(self.expected("the end of the statement", known)),
        }
    }

    /// A name, quoted or not.
    pub(crate) fn name(&mut self, of: &str) -> Result<Named, QueryError> {
        match self.token() {
            Some(Token::Word(word)) => {
                let name = word.value.clone();
                let place = Some(self.place());
                self.bump();
                Ok(Named { name, place })
            }
            _ => Err(self.expected(&format!("the name of {of}"), &[])),
        }
    }

    /// The name of a table of the user, with or without the schema that all of them are in.
    pub(crate) fn table_name(&mut self, of: &str) -> Result<Named, QueryError> {
        let first = self.name(of)?;
        if !self.accept(".") {
            return Ok(first);
        }
        let second = self.name(of)?;
        match first.name == crate::session::USER_SCHEMA {
            true => Ok(second),
            false => {
                let message = format!(
                    "tables are in schema '{}', not '{}'",
                    crate::session::USER_SCHEMA,
                    first.name
                );
                Err(QueryError::invalid(message).at(first.place))
            }
        }
    }

    /// `FROM name`, if it stands here.
    pub(crate) fn from(&mut self, of: &str) -> Result<Option<Named>, QueryError> {
        match self.accept("FROM") || self.accept("OF") {
            true => self.table_name(of).map(Some),
            false => Ok(None),
        }
    }

    /// Words joined by points, such as `client.security.protocol`.
    pub(crate) fn dotted_name(&mut self, what: &str) -> Result<Named, QueryError> {
        let start = self.place();
        let mut joined = match self.token() {
            Some(Token::Word(_)) => self.name(what)?.name,
            _ => return Err(self.expected(what, &[])),
        };
        let mut last = start;
        while self.accept(".") {
            last = self.place();
            joined = format!("{joined}.{}", self.name(what)?.name);
        }
        let length = match last.line == start.line {
            true => last.column + last.length - start.column,
            false => start.length,
        };
        Ok(Named {
            name: joined,
            place: Some(Place { length, ..start }),
        })
    }

    /// A text in single quotes or a number, as text.
    pub(crate) fn literal(&mut self, what: &str) -> Result<String, QueryError> {
        let text = match self.token() {
            Some(Token::SingleQuotedString(text)) => text.clone(),
            Some(Token::Number(number, _)) => {
                let number = number.clone();
                self.bump();
                return Ok(number + &self.rest_of_number());
            }
            _ => return Err(self.expected(what, &[])),
        };
        self.bump();
        Ok(text)
    }

    /// What the tokenizer cuts off a number such as `100_000`.
    fn rest_of_number(&mut self) -> String {
        let tokens = &self.words.tokens;
        let adjacent = self.next > 0
            && tokens
                .get(self.next)
                .is_some_and(|next| next.span.start == tokens[self.next - 1].span.end);
        match self.token() {
            Some(Token::Word(word)) if adjacent && word.value.chars().all(|c| c == '_' || c.is_ascii_digit()) => {
                let rest = word.value.clone();
                self.bump();
                rest
            }
            _ => String::new(),
        }
    }

    /// A text in single quotes, a number or a plain word, as text.
    pub(crate) fn word_or_literal(&mut self, what: &str) -> Result<String, QueryError> {
        match self.peek_word() {
            Some(word) => {
                self.bump();
                Ok(word)
            }
            None => self.literal(what),
        }
    }

    /// Everything up to the end or a semicolon, as text.
    pub(crate) fn rest(&mut self) -> String {
        let rest = self.words.tokens[self.next..].iter();
        let words: Vec<String> = rest
            .take_while(|t| t.token != Token::SemiColon)
            .map(|t| written(&t.token))
            .collect();
        self.next += words.len();
        words.join(" ")
    }

    /// A whole number.
    pub(crate) fn number<N: std::str::FromStr>(&mut self, what: &str) -> Result<N, QueryError> {
        let parsed = match self.token() {
            Some(Token::Number(number, _)) => number.parse().ok(),
            _ => None,
        };
        let Some(number) = parsed else {
            return Err(self.expected(what, &[]));
        };
        self.bump();
        Ok(number)
    }
}

/// The token as it is written in a statement. Its own text leaves out what is doubled inside quotes.
fn written(token: &Token) -> String {
    match token {
        Token::SingleQuotedString(text) => format!("'{}'", text.replace('\'', "''")),
        Token::Word(word) if word.quote_style == Some('"') => format!("\"{}\"", word.value.replace('"', "\"\"")),
        other => other.to_string(),
    }
}

/// The text with a small first letter, as all messages begin.
pub(crate) fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !chars.as_str().starts_with(|c: char| c.is_uppercase()) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}
