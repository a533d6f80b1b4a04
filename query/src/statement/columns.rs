//! Which columns a query may need, by the words in it. Known before the query is planned, so that rows in memory come
//! without the others: a count would otherwise fetch every text of every memtable in the cluster.

use super::words::Words;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::Token;
use std::collections::BTreeSet;

impl Words {
    /// All words of the text, the names of the columns that it reads among them; `None` where it may read columns that it
    /// does not name: by `*`, by `NATURAL` joins, and without a `SELECT`.
    pub(crate) fn columns(&self) -> Option<BTreeSet<String>> {
        let tokens: Vec<&Token> = self.tokens().iter().map(|t| &t.token).collect();
        let has = |keyword| {
            tokens
                .iter()
                .any(|token| matches!(token, Token::Word(w) if w.keyword == keyword))
        };
        let mut stars = (0..tokens.len()).filter(|at| *tokens[*at] == Token::Mul);
        if stars.any(|at| stands_for_columns(&tokens, at)) || has(Keyword::NATURAL) || !has(Keyword::SELECT) {
            return None;
        }
        let word = |token: &Token| match token {
            Token::Word(word) => Some(word.value.clone()),
            _ => None,
        };
        Some(tokens.into_iter().filter_map(word).collect())
    }
}

/// Whether the star at `at` is neither that of `count(*)` nor surely a multiplication.
fn stands_for_columns(tokens: &[&Token], at: usize) -> bool {
    let before = at.checked_sub(1).and_then(|before| tokens.get(before).copied());
    let after = tokens.get(at + 1).copied();
    let operand = |token: Option<&Token>, bracket: &Token| match token {
        Some(Token::Number(..)) => true,
        Some(Token::Word(word)) => word.keyword == Keyword::NoKeyword,
        token => token == Some(bracket),
    };
    let counts = before == Some(&Token::LParen) && after == Some(&Token::RParen);
    let multiplies = operand(before, &Token::RParen) && operand(after, &Token::LParen);
    !counts && !multiplies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_is_not_read() {
        let columns = |sql: &str| Words::of(sql).unwrap().columns();
        let named = columns("SELECT count(*), max(t.\"Amount\" * 2) FROM t WHERE note LIKE '%x%'").unwrap();
        assert!(named.contains("Amount") && named.contains("note") && !named.contains("x"));
        for all in [
            "SELECT * FROM t",
            "SELECT a, * FROM t",
            "SELECT DISTINCT ON (a) * FROM t",
            "SELECT t.* FROM t",
            "SELECT count(*) FROM (SELECT * FROM t)",
            "SELECT a FROM t NATURAL JOIN u",
            "FROM t",
        ] {
            assert_eq!(columns(all), None, "{all}");
        }
    }
}
