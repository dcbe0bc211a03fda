//! Deploy images and their blobs over the API.

use axum::Json;
use axum::extract::State;
use axum::response::Response;

use super::answer;
use super::api::{BlobEntry, ImageEntry};
use super::asked::{Asked, NoQuery, Segment};
use super::problem::{Problem, ProblemKind};
use super::routes::Shared;
use super::views;
use crate::image::library::is_profile_name;

pub(super) async fn list(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let served: Option<bool> = asked.read("served", "true or false")?;
    let paging = asked.paging::<String>()?;
    asked.finish()?;
    let images = parts.appliance.images().into_iter().filter(|image| {
        served.is_none_or(|served| image.served == served)
            && paging.after.as_ref().is_none_or(|after| image.profile > *after)
    });
    Ok(answer::listed(&asked, views::page(images, paging.limit, |image| image.profile.clone())))
}

pub(super) async fn show(
    State(parts): State<Shared>,
    Segment(profile): Segment,
    _: NoQuery,
) -> Result<Json<ImageEntry>, Problem> {
    if !is_profile_name(&profile) {
        let detail = "a profile's name is 1 to 63 lower-case letters, digits and inner hyphens";
        return Err(Problem::new(ProblemKind::Invalid, detail).field("profile"));
    }
    let found = parts.appliance.images().into_iter().find(|image| image.profile == profile);
    found.map(Json).ok_or_else(|| {
        Problem::new(ProblemKind::NotFound, format!("there is no image of profile {profile}"))
            .way_out(format!("`farrier image build deploy --profile {profile}` makes one, then reload"))
    })
}

pub(super) async fn disks(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let paging = asked.paging::<String>()?;
    asked.finish()?;
    let images = parts.appliance.disk_images().into_iter();
    let behind = images.filter(|image| paging.after.as_ref().is_none_or(|after| image.name > *after));
    Ok(answer::listed(&asked, views::page(behind, paging.limit, |image| image.name.clone())))
}

pub(super) async fn blobs(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let paging = asked.paging::<String>()?;
    asked.finish()?;
    let blobs = views::blobs(&parts.appliance.images());
    let behind =
        blobs.into_iter().filter(|blob| paging.after.as_ref().is_none_or(|after| blob.digest > *after));
    Ok(answer::listed(&asked, views::page(behind, paging.limit, |blob| blob.digest.clone())))
}

pub(super) async fn blob(
    State(parts): State<Shared>,
    Segment(digest): Segment,
    _: NoQuery,
) -> Result<Json<BlobEntry>, Problem> {
    let digest: crate::image::digest::Digest = digest.parse().map_err(|_| {
        let detail = "a blob is named by its SHA-256, in 64 lower-case hexadecimal digits";
        Problem::new(ProblemKind::Invalid, detail).field("digest")
    })?;
    let digest = digest.to_string();
    let found = views::blobs(&parts.appliance.images()).into_iter().find(|blob| blob.digest == digest);
    found.map(Json).ok_or_else(|| {
        Problem::new(ProblemKind::NotFound, "no image names a blob with this digest")
            .way_out("/api/v1/blobs lists those there are")
    })
}
