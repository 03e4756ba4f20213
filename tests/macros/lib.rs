//! The attribute of the integration tests.

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// `#[support::async_test]`, with a future of one type for all tests.
///
/// With Rocket's own attribute, the compiler generates Tokio's `block_on` anew for each of 400 tests. That was a
/// quarter of its work for them.
///
/// # Panics
///
/// On anything but `async fn name() { … }`.
#[proc_macro_attribute]
pub fn async_test(_: TokenStream, test: TokenStream) -> TokenStream {
    let mut tokens: Vec<_> = test.into_iter().collect();
    let Some(TokenTree::Group(body)) = tokens.pop() else { panic!("expected `async fn name() {{ … }}`") };
    let is_async = |token: &TokenTree| matches!(token, TokenTree::Ident(name) if name.to_string() == "async");
    let Some(keyword) = tokens.iter().position(is_async) else { panic!("expected `async fn`") };
    tokens.remove(keyword);

    let future = code("async move").into_iter().chain([TokenTree::Group(body)]);
    let boxed = code("::std::boxed::Box::pin").into_iter().chain(group(Delimiter::Parenthesis, future));
    let run = code("::support::run_test").into_iter().chain(group(Delimiter::Parenthesis, boxed));
    code("#[::core::prelude::v1::test]")
        .into_iter()
        .chain(tokens)
        .chain(group(Delimiter::Brace, run))
        .collect()
}

fn code(source: &str) -> TokenStream {
    source.parse().expect("Rust")
}

fn group(delimiter: Delimiter, tokens: impl Iterator<Item = TokenTree>) -> Option<TokenTree> {
    Some(TokenTree::Group(Group::new(delimiter, tokens.collect())))
}
