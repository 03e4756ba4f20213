//! How it looks.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use rocket::http::Status;
use rocket::uri;
use rocket_replicated::{Reason, Role};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::{Entry, View};

pub const AUTHOR_LENGTH: usize = 40;
pub const MESSAGE_LENGTH: usize = 200;

/// The one page. The stranger's half is empty until the script has asked as one.
pub fn index(you: &View) -> Markup {
    layout(
        "Guestbook",
        html! {
            header {
                h1 { "Guestbook" }
                p {
                    "Entries are written to the master. Reads go to a slave, which follows a little later. \
                     Only visitors who have just written read from the master for a few seconds, and so see \
                     the entry at once."
                }
            }
            div.actions {
                form.sign method="post" action=(uri!(crate::sign)) {
                    label {
                        "Name"
                        input name="author" required maxlength=(AUTHOR_LENGTH) autocomplete="name";
                    }
                    label.message {
                        "Message"
                        input name="message" required maxlength=(MESSAGE_LENGTH) autocomplete="off";
                    }
                    button { "Sign" }
                }
                form action=(uri!(crate::visit)) {
                    button.quiet { "Count my visit" }
                }
            }
            p #trouble role="status" {}
            main {
                section aria-labelledby="you" {
                    h2 #you { "You" }
                    p.asked { "The request with your cookies" }
                    div.view data-credentials="same-origin" { (view(you)) }
                }
                section aria-labelledby="stranger" {
                    h2 #stranger { "A stranger" }
                    p.asked { "The same request without them" }
                    div.view data-credentials="omit" {
                        noscript {
                            p { "Without JavaScript: open this page in a private window to see what a stranger sees." }
                        }
                    }
                }
            }
            footer { a href="/status" { "How the servers are" } }
            script { (PreEscaped(include_str!("page.js"))) }
        },
    )
}

/// Node, reason and entries, as one reader sees them.
pub fn view(view: &View) -> Markup {
    html! {
        @if let Some(choice) = &view.choice {
            p.node {
                strong class=(choice.role()) { (choice.role()) } " " code { (choice.node()) }
            }
            p data-reason=(format!("{:?}", choice.reason())) { (because(choice.reason(), choice.role())) }
        }
        p.visits { "Visits: " (view.visits) }
        @if view.entries.is_empty() {
            p.empty { "No entries yet" }
        }
        ol {
            @for entry in &view.entries { (self::entry(entry)) }
        }
    }
}

fn entry(entry: &Entry) -> Markup {
    html! {
        li data-entry=(entry.id) {
            p { (entry.message) }
            p.by { (entry.author) " · " (time(entry.written_at)) }
        }
    }
}

fn time(at: OffsetDateTime) -> Markup {
    let shown = at.format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC"));
    html! {
        time datetime=[at.format(&Rfc3339).ok()] { (shown.unwrap_or_default()) }
    }
}

fn because(reason: Reason, role: Role) -> &'static str {
    match (reason, role) {
        (Reason::Pinned, _) => "because this reader has just written",
        (Reason::NoSlaves, _) => "because there are no slaves",
        (Reason::SwitchedOff | Reason::OutsideShare, _) => "because reading from slaves is switched off",
        (Reason::SlavesUnavailable, _) => "because no slave is available",
        (Reason::MasterUnavailable, _) => "because the master is not available",
        (_, Role::Slave) => "because this request only reads",
        (_, Role::Master) => "because this request writes",
    }
}

pub fn problem(status: Status) -> Markup {
    let explained = match status {
        Status::NotFound => "There is nothing here.",
        Status::UnprocessableEntity => "An entry needs a name and a message, and neither may be too long.",
        Status::ServiceUnavailable => "The guestbook cannot be reached at the moment. Please try again.",
        _ => "That did not work.",
    };
    layout(
        status.reason_lossy(),
        html! {
            header {
                h1 { (status.reason_lossy()) }
                p { (explained) }
            }
            p { a href=(uri!(crate::index)) { "To the guestbook" } }
        },
    )
}

fn layout(title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                // Without it, browsers ask for /favicon.ico.
                link rel="icon" href="data:,";
                style { (PreEscaped(include_str!("page.css"))) }
            }
            body { (body) }
        }
    }
}
