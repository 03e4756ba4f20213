//! Finds the word that a misspelt one was meant to be.

/// The similarity below which a word is not suggested, because that would be a guess.
const ALIKE: f64 = 0.6;

/// The candidate that is most like `word`, if one is alike enough.
pub(crate) fn most_alike<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rated =
        candidates.map(|candidate| (strsim::normalized_damerau_levenshtein(candidate, word), candidate));
    let best = rated.filter(|(alike, _)| *alike >= ALIKE).max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map(|(_, candidate)| candidate)
}
