//! What a misspelt word was meant to be.

/// Words that are less alike than this are not suggested: it would be a guess.
const ALIKE: f64 = 0.6;

/// The one of `candidates` that `word` is most like, if it is like one.
pub(crate) fn most_alike<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rated =
        candidates.map(|candidate| (strsim::normalized_damerau_levenshtein(candidate, word), candidate));
    let best = rated.filter(|(alike, _)| *alike >= ALIKE).max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map(|(_, candidate)| candidate)
}
