//! The page as HTML.

use maud::{DOCTYPE, Markup, html};
use time::OffsetDateTime;

use super::Outlet;
use super::chart::chart;
use super::drills::{Drill, Drills};
use super::snapshot::{ServerSnapshot, Snapshot, timestamp};
use crate::config::ReadShare;
use crate::counters::Counts;
use crate::health::{Mood, NodeState, Role};
use crate::routing::Reason;

pub(super) const SCRIPT: &str = include_str!("status.js");
pub(super) const STYLE: &str = include_str!("status.css");

/// What the page needs besides the snapshot.
struct Context<'a> {
    base: &'a str,
    drills: Drills,
}

pub(super) fn page(snapshot: &Snapshot, base: &str, drills: Drills) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Status of " (snapshot.database) }
                link rel="icon" href={ (base.trim_end_matches('/')) "/icon.svg" };
                link rel="stylesheet" href=(Outlet::Style.link(base));
                script src=(Outlet::Script.link(base)) defer {}
            }
            body data-events=(Outlet::Events.link(base)) {
                a.skip href="#servers" { "Skip to the servers" }
                header {
                    h1 { "Database " span.name { (snapshot.database) } }
                    p #live hidden {}
                }
                // Screen readers read this out when a state changes. The script fills it.
                p #news.unseen role="status" aria-live="polite" {}
                (content(snapshot, base, drills))
                footer {
                    p {
                        "rocket_replicated " (snapshot.version) " · "
                        a href=(Outlet::Json.link(base)) { "JSON" } " · "
                        a href=(Outlet::Health.link(base)) { "Health" }
                        @if cfg!(feature = "metrics") { " · " a href=(Outlet::Metrics.link(base)) { "Metrics" } }
                    }
                }
            }
        }
    }
}

/// The part of the page that is kept up to date.
pub(super) fn content(snapshot: &Snapshot, base: &str, drills: Drills) -> Markup {
    let context = Context { base, drills };
    html! {
        main {
            (summary(snapshot))
            section #servers tabindex="-1" aria-labelledby="servers-title" {
                h2 #servers-title { "Servers" }
                div.cards {
                    @for server in &snapshot.servers { (card(server, snapshot, &context)) }
                }
            }
            (reads(snapshot, &context))
            (changes(snapshot))
            (settings(snapshot))
        }
    }
}

fn summary(snapshot: &Snapshot) -> Markup {
    let servers = &snapshot.servers;
    let is_up = |server: &&ServerSnapshot| {
        server.state.mood() == Mood::Well && server.read_url.is_none_or(|state| state.mood() == Mood::Well)
    };
    let (up, all) = (servers.iter().filter(is_up).count(), servers.len());
    let is_well = up == all && snapshot.health.reads && snapshot.health.writes;
    let (reads, writes) = (snapshot.health.reads, snapshot.health.writes);
    let what = match (reads, writes) {
        (true, true) => "Reads and writes are served.",
        (true, false) => "Reads are served, writes are not: see the master's card.",
        (false, true) => "Writes are served, reads are not.",
        (false, false) => "Neither reads nor writes are served.",
    };
    let mood = if is_well {
        Mood::Well
    } else if reads && writes {
        Mood::Partly
    } else {
        Mood::Ill
    };
    html! {
        p.summary.(mood.as_str()) {
            strong { @if all == 1 { "The server is " (servers[0].state) ". " } @else { (up) " of " (all) " servers are up. " } }
            (what)
            @if snapshot.reads_from_slaves != snapshot.configured_share {
                " By order of an operator, reads that go to slaves: " (snapshot.reads_from_slaves) "."
            }
        }
        p.as-of { "As of " (time(snapshot.at)) }
    }
}

fn card(server: &ServerSnapshot, snapshot: &Snapshot, context: &Context<'_>) -> Markup {
    let title = format!("server-{}", server.name);
    html! {
        article.card aria-labelledby=(title) data-server=(server.name) data-state=(server.state) {
            h3 #(title) { (server.name) }
            p.badges {
                span.badge.(server.role) { (server.role) } " "
                span.badge.(server.state.mood().as_str()) { (server.state) }
                @if let Some(state) = server.read_url { " " span.badge.(state.mood().as_str()) { "read_url: " (state) } }
            }
            @if let Some(address) = &server.address { p.address { code { (address) } } }
            p.meaning { (server.state.meaning(server.role)) }
            @if server.role == Role::Slave { (chart(server.lag, &lags(server), snapshot.max_lag)) }
            p.chosen {
                @let chosen = server.latest_choices.total();
                "Chosen " strong { (chosen) } @if chosen == 1 { " time" } @else { " times" } " in the last minute"
            }
            table {
                caption { "Connections" }
                thead {
                    tr {
                        th scope="col" { "For" }
                        th scope="col" { "In use" }
                        th scope="col" { "Waiting" }
                        th scope="col" { "At most" }
                    }
                }
                tbody {
                    @for pool in &server.connections {
                        tr {
                            th scope="row" { (pool.used_for) }
                            td { (pool.in_use) }
                            td.alert[pool.waiting > 0] { (pool.waiting) }
                            td { (pool.max) }
                        }
                    }
                }
            }
            @if context.drills == Drills::On && server.is_slave {
                @match server.state {
                    NodeState::TakenOut => (drill(context, Drill::PutBack, Some(&server.name))),
                    _ => (drill(context, Drill::TakeOut, Some(&server.name))),
                }
            }
        }
    }
}

fn lags(server: &ServerSnapshot) -> Vec<crate::health::LagSample> {
    server.lags.iter().map(|lag| lag.sample).collect()
}

fn drill(context: &Context<'_>, drill: Drill, slave: Option<&str>) -> Markup {
    let label = match (drill, slave) {
        (Drill::TakeOut, Some(slave)) => format!("Take {slave} out"),
        (Drill::PutBack, Some(slave)) => format!("Put {slave} back"),
        (Drill::ResumeReadingSlaves, _) => "Read from slaves as configured".into(),
        _ => "Send all reads to the master".into(),
    };
    html! {
        form.drill method="post" action=(Outlet::Drills.link(context.base)) {
            input type="hidden" name="drill" value=(drill.as_str());
            @if let Some(slave) = slave { input type="hidden" name="slave" value=(slave); }
            button id={ "drill-" (slave.unwrap_or(drill.as_str())) } { (label) }
        }
    }
}

/// The shares of the clients that drills offer, in percent.
const SHARES: [u8; 8] = [0, 1, 5, 10, 25, 50, 75, 100];

/// The drills that set which reads go to slaves, in place of the configuration.
fn share_drills(snapshot: &Snapshot, context: &Context<'_>) -> Markup {
    let is_present =
        |percent: u8| ReadShare::of_clients(f64::from(percent) / 100.0) == snapshot.reads_from_slaves;
    html! {
        div.drills {
            (drill(context, Drill::StopReadingSlaves, None))
            form.drill method="post" action=(Outlet::Drills.link(context.base)) {
                input type="hidden" name="drill" value=(Drill::SetReadShare.as_str());
                label for="share" { "Clients read from slaves" }
                select #share name="share" required {
                    @if !SHARES.into_iter().any(is_present) { option value="" disabled selected { "–" } }
                    @for percent in SHARES {
                        option value=(percent) selected[is_present(percent)] { (percent) " %" }
                    }
                }
                button #drill-share { "Set" }
            }
            @if snapshot.reads_from_slaves != snapshot.configured_share {
                (drill(context, Drill::ResumeReadingSlaves, None))
            }
        }
    }
}

fn reads(snapshot: &Snapshot, context: &Context<'_>) -> Markup {
    let is_read = |reason: &Reason| !reason.writes();
    let sum = |counts: &Counts<Reason>, of: &dyn Fn(&Reason) -> bool| -> u64 {
        counts.iter().filter(|(reason, _)| of(reason)).map(|(_, count)| count).sum()
    };
    let (latest, all) = (&snapshot.latest_choices, &snapshot.choices);
    let (reads_of_late, reads) = (sum(latest, &is_read), sum(all, &is_read));
    let (writes_of_late, writes) = (latest.total() - reads_of_late, all.total() - reads);
    html! {
        section aria-labelledby="reads-title" {
            h2 #reads-title { "Reads by reason" }
            @if context.drills == Drills::On && snapshot.servers.len() > 1 { (share_drills(snapshot, context)) }
            div.scroll tabindex="0" role="region" aria-labelledby="reads-title" {
                table.reads {
                    caption { "Requests that read, by the reason for which their server was chosen" }
                    thead {
                        tr {
                            th scope="col" { "Reason" }
                            th scope="col" { "Served by" }
                            th scope="col" { "Last minute" }
                            th.share scope="col" { "Share" }
                            th scope="col" { "Since launch" }
                        }
                    }
                    tbody {
                        @for (reason, count) in all.iter().filter(|(reason, count)| is_read(reason) && *count > 0) {
                            @let percent = percent(latest.get(reason), reads_of_late);
                            tr data-reason=(reason) {
                                th scope="row" { (reason) }
                                td { (reason.role()) }
                                td { (latest.get(reason)) }
                                td.share {
                                    (percent) " %"
                                    svg.bar.(reason.role().as_str()) viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true" focusable="false" {
                                        rect width=(percent) height="4" {}
                                    }
                                }
                                td { (count) }
                            }
                        }
                        @if reads == 0 { tr { td colspan="5" { "None yet" } } }
                    }
                }
            }
            p.quiet { "Requests that write: " (writes_of_late) " in the last minute, " (writes) " since launch." }
        }
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    (part * 100 + whole / 2).checked_div(whole).unwrap_or_default()
}

fn changes(snapshot: &Snapshot) -> Markup {
    html! {
        section aria-labelledby="changes-title" {
            h2 #changes-title { "Latest changes" }
            @if snapshot.changes.is_empty() { p.quiet { "None since launch" } }
            ol #changes {
                @for change in &snapshot.changes {
                    li data-server=(change.server) data-state=(change.state) {
                        (time(change.at)) " "
                        span.what {
                            strong { (change.server) } ": "
                            @match change.became {
                                Some(Role::Master) => "the master from now on, writes go there",
                                Some(Role::Slave) => "not the master any more",
                                None => (change.state),
                            }
                        }
                    }
                }
            }
        }
    }
}

fn settings(snapshot: &Snapshot) -> Markup {
    html! {
        section aria-labelledby="settings-title" {
            h2 #settings-title { "Configuration in force" }
            dl.settings {
                @for setting in &snapshot.settings {
                    div { dt { (setting.key) } dd { (setting.value) } }
                }
            }
        }
    }
}

fn time(at: OffsetDateTime) -> Markup {
    let timestamp = timestamp(at);
    html! {
        time datetime=(timestamp) { (timestamp.replace('T', " ").replace('Z', " UTC")) }
    }
}
