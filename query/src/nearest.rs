//! The nearest of some names to a misspelt one, for "did you mean".

/// The candidate that `word` most likely stands for, if one is near enough: equal but for case, or
/// at most a third of its letters away.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = word.to_lowercase();
    let allowed = (wanted.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&wanted, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        // Of two equally near, the longer: letters are left out more often than typed twice.
        .min_by_key(|(distance, candidate)| (*distance, std::cmp::Reverse(candidate.len())))
        .map(|(_, candidate)| candidate)
}

/// `; did you mean 'x'?` or nothing, to be put behind a message.
pub(crate) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates)
        .map(|found| format!("; did you mean {found}?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_found_and_a_far_one_is_not() {
        assert_eq!(nearest("SELEC", ["INSERT", "SELECT", "SET"]), Some("SELECT"));
        assert_eq!(nearest("evnts", ["users", "events"]), Some("events"));
        assert_eq!(nearest("Events", ["events"]), Some("events"));
        assert_eq!(nearest("cout", ["cot", "count", "sum"]), Some("count"));
        assert_eq!(nearest("zebra", ["events", "users"]), None);
        assert_eq!(nearest("a", ["b"]), None);
    }
}
