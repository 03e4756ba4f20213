//! The drills of the page, which do the same as [`Cluster`]'s methods.

use log::warn;
use rocket::form::{FromForm, FromFormField};
use rocket::http::Status;
use rocket::{Request, response::Redirect};
use rocket_db_pools::Database;

use super::origin::{Sender, sender_of};
use crate::backend::Backend;
use crate::cluster::Cluster;
use crate::config::ReadShare;

/// Whether the page has drills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drills {
    Off,
    On,
}

/// The form's fields.
#[derive(Debug, FromForm)]
pub(super) struct Order<'r> {
    drill: Drill,
    /// The slave's name, for drills with one slave.
    slave: Option<&'r str>,
    /// The share of the clients, in percent.
    share: Option<u8>,
}

/// A drill, by the name of the method of [`Cluster`] that does the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromFormField)]
pub(super) enum Drill {
    #[field(value = "take_out")]
    TakeOut,
    #[field(value = "put_back")]
    PutBack,
    #[field(value = "set_read_share")]
    SetReadShare,
    #[field(value = "stop_reading_slaves")]
    StopReadingSlaves,
    #[field(value = "resume_reading_slaves")]
    ResumeReadingSlaves,
}

impl Drill {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::TakeOut => "take_out",
            Self::PutBack => "put_back",
            Self::SetReadShare => "set_read_share",
            Self::StopReadingSlaves => "stop_reading_slaves",
            Self::ResumeReadingSlaves => "resume_reading_slaves",
        }
    }
}

/// Refuses a form that another site sends with the operator's cookies.
pub(super) fn check_sender(request: &Request<'_>, database: &str) -> Result<(), Status> {
    match sender_of(request) {
        Sender::OwnPage => Ok(()),
        Sender::Elsewhere => {
            let by = name_of_client(request);
            warn!(
                "A drill of database `{database}` was refused, because {by} sent it from another site than the status \
                 page. A link or form of that site may have misused an operator's login."
            );
            Err(Status::Forbidden)
        }
    }
}

fn name_of_client(request: &Request<'_>) -> String {
    request.client_ip().map_or_else(|| "an unknown client".into(), |ip| ip.to_string())
}

impl Order<'_> {
    /// Carries out the drill. A form with an unknown slave cannot be processed.
    pub(super) fn carry_out<D: Database<Pool: Backend>>(
        &self,
        cluster: &Cluster<D>,
        request: &Request<'_>,
        page: String,
    ) -> Result<Redirect, Status> {
        let Self { drill, slave, share } = self;
        let by = name_of_client(request);
        let of = slave.map(|slave| format!(" of slave `{}`", slave.escape_debug())).unwrap_or_default();
        let of = share.map_or(of, |share| format!(" with {share} % of the clients"));
        warn!(
            "Drill `{}`{of} of database `{}`, ordered on the status page by {by}.",
            drill.as_str(),
            D::NAME
        );
        let named = || slave.ok_or(Status::UnprocessableEntity);
        let unknown = |_| Status::UnprocessableEntity;
        match drill {
            Drill::TakeOut => cluster.take_out(named()?).map_err(unknown)?,
            Drill::PutBack => cluster.put_back(named()?).map_err(unknown)?,
            Drill::SetReadShare => {
                let share = share.filter(|share| *share <= 100).ok_or(Status::UnprocessableEntity)?;
                cluster.set_read_share(ReadShare::of_clients(f64::from(share) / 100.0));
            }
            Drill::StopReadingSlaves => cluster.stop_reading_slaves(),
            Drill::ResumeReadingSlaves => cluster.resume_reading_slaves(),
        }
        Ok(Redirect::to(page))
    }
}
