//! `/containerLogs`: a container's log.

use std::path::PathBuf;

use futures::StreamExt as _;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerStatus;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::{Body, Failure, Query, text};
use crate::{
    kubelet::{Kubelet, PodHandle},
    logs::{Options, Stream, copy},
    pod::PodExt as _,
};

/// How many pieces of a log may wait for a slow reader.
const PIECES: usize = 8;

pub(super) fn logs(
    kubelet: &Kubelet,
    namespace: &str,
    pod_name: &str,
    container: &str,
    query: &Query,
) -> Result<Response<Body>, Failure> {
    let options = options(query, Timestamp::now())?;
    let handle = kubelet
        .pods
        .by_name(namespace, pod_name)
        .ok_or_else(|| Failure::not_found(format!("pod {pod_name:?} not found\n")))?;
    let pod = handle.pod();
    if !pod.all_containers().iter().any(|(_, c)| c.name == container) {
        return Err(Failure::not_found(format!("container {container:?} not found in pod {pod_name:?}\n")));
    }
    let previous = query.flag("previous");
    let (id, path) = find(&handle, pod_name, container, previous)?;
    if !path.exists() {
        return Err(Failure::bad_request(format!(
            "failed to try resolving symlinks in path {:?}: lstat {}: no such file or directory",
            path.display().to_string(),
            path.display()
        )));
    }
    if options.tail_lines == Some(0) && !options.follow {
        return Ok(text(StatusCode::OK, "text/plain", ""));
    }
    let running = running(&handle, id);
    let (sender, pieces) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        if let Err(error) = copy(path, options, running, sender.clone()).await {
            // Breaks the answer off, so that it is not taken for whole.
            let _ = sender.send(Err(error)).await;
        }
    });
    let body = StreamBody::new(ReceiverStream::new(pieces).map(|piece| piece.map(Frame::data))).boxed_unsync();
    let mut response = Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// Follows whether a container runs.
fn running(handle: &PodHandle, id: String) -> watch::Receiver<bool> {
    let mut view = handle.view.subscribe();
    let runs = |view: &crate::observed::Observed, id: &str| view.containers.iter().any(|c| c.id() == id && c.may_run());
    let (sender, receiver) = watch::channel(runs(&view.borrow_and_update(), &id));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
            let now = runs(&view.borrow_and_update(), &id);
            sender.send_if_modified(|known| std::mem::replace(known, now) != now);
        }
    });
    receiver
}

/// Id and log of the run that is asked for.
fn find(handle: &PodHandle, pod_name: &str, container: &str, previous: bool) -> Result<(String, PathBuf), Failure> {
    let view = handle.view.borrow().clone();
    let mut runs = view.containers.iter().filter(|c| c.name == container && !c.status.log_path.is_empty());
    let latest = runs.next();
    let status = status_of(handle, container);
    let waiting = status.as_ref().and_then(|s| s.state.as_ref()).and_then(|s| s.waiting.as_ref());
    let reason = waiting.and_then(|w| w.reason.as_deref()).unwrap_or_default();
    if previous {
        // While the container waits to be started again the newest run is the one before.
        let chosen = match latest {
            Some(c) if c.is_exited() && waiting.is_some() => Some(c),
            Some(_) => runs.find(|c| c.is_exited()),
            None => None,
        };
        return match chosen {
            Some(c) => Ok((c.id().to_owned(), PathBuf::from(&c.status.log_path))),
            None => Err(Failure::bad_request(format!(
                "previous terminated container {container:?} in pod {pod_name:?} not found"
            ))),
        };
    }
    if let Some(latest) = latest.filter(|c| c.is_exited() || c.is_running()) {
        return Ok((latest.id().to_owned(), PathBuf::from(&latest.status.log_path)));
    }
    Err(Failure::bad_request(match reason {
        "ErrImagePull" => {
            format!("container {container:?} in pod {pod_name:?} is waiting to start: image can't be pulled")
        }
        "ImagePullBackOff" => {
            format!("container {container:?} in pod {pod_name:?} is waiting to start: trying and failing to pull image")
        }
        "" => format!("container {container:?} in pod {pod_name:?} is not available"),
        reason => format!("container {container:?} in pod {pod_name:?} is waiting to start: {reason}"),
    }))
}

fn status_of(handle: &PodHandle, container: &str) -> Option<ContainerStatus> {
    let pod = handle.pod();
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|s| s.name == container).cloned()
}

fn options(query: &Query, now: Timestamp) -> Result<Options, Failure> {
    let invalid = |name: &str, value: &str| {
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, format!("invalid value {value:?} for {name}"))
    };
    let number = |name: &str| -> Result<Option<u64>, Failure> {
        match query.get(name).filter(|v| !v.is_empty()) {
            Some(value) => value.parse().map(Some).map_err(|_| invalid(name, value)),
            None => Ok(None),
        }
    };
    let since = match (number("sinceSeconds")?, query.get("sinceTime").filter(|v| !v.is_empty())) {
        (Some(seconds), _) => {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            Timestamp::from_second(now.as_second().saturating_sub(seconds)).ok()
        }
        (None, Some(time)) => Some(time.parse().map_err(|_| invalid("sinceTime", time))?),
        (None, None) => None,
    };
    let size = |value: Option<u64>| value.map(|v| usize::try_from(v).unwrap_or(usize::MAX));
    Ok(Options {
        follow: query.flag("follow"),
        timestamps: query.flag("timestamps"),
        since,
        tail_lines: size(number("tailLines")?),
        limit_bytes: size(number("limitBytes")?),
        stream: match query.get("stream") {
            Some("Stdout") => Stream::Stdout,
            Some("Stderr") => Stream::Stderr,
            _ => Stream::All,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let now = Timestamp::from_second(1000).unwrap();
        let parsed =
            options(&Query::parse("follow=true&tailLines=3&sinceSeconds=10&stream=Stderr&limitBytes=7"), now).unwrap();
        assert!(parsed.follow && !parsed.timestamps);
        assert_eq!((parsed.tail_lines, parsed.limit_bytes), (Some(3), Some(7)));
        assert_eq!(parsed.since.unwrap().as_second(), 990);
        assert_eq!(parsed.stream, Stream::Stderr);
        assert_eq!(options(&Query::parse("tailLines=-1"), now).unwrap_err().code, 422);
    }
}
