//! The fake API server with what kubelets need besides: strategic merge patches and tokens.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use skiff_client::fake::FakeApi;
use tower::Service;

#[derive(Clone)]
pub(super) struct Api(pub(super) FakeApi);

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn json_answer(code: StatusCode, value: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *response.status_mut() = code;
    response
}

impl Service<Request<Body>> for Api {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut api = self.0.clone();
        Box::pin(async move {
            let kind = request.headers().get(CONTENT_TYPE).and_then(|k| k.to_str().ok()).unwrap_or_default().to_owned();
            let path = request.uri().path().to_owned();
            if path.ends_with("/token") {
                let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3600);
                let status = json!({"token": "a-token", "expirationTimestamp": expires.to_string()});
                let answer = json!({"status": status, "spec": {"audiences": []}, "metadata": {}});
                return Ok(json_answer(StatusCode::CREATED, &answer));
            }
            if request.method() != Method::PATCH || !kind.contains("strategic") {
                return api.call(request).await;
            }
            let object = path.trim_end_matches("/status").to_owned();
            let type_name = match () {
                () if object.contains("/pods/") => "api.core.v1.Pod",
                () if object.contains("/events/") => "api.core.v1.Event",
                () => "api.core.v1.Node",
            };
            let patch: Value = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
            let found = api.call(Request::get(&object).body(Body::empty()).unwrap()).await?;
            if found.status() != StatusCode::OK {
                return Ok(found);
            }
            let body = found.into_body().collect().await?.to_bytes();
            let mut value: Value = serde_json::from_slice(&body).unwrap();
            if patch["metadata"]["uid"].is_string() && patch["metadata"]["uid"] != value["metadata"]["uid"] {
                let status =
                    json!({"kind": "Status", "status": "Failure", "code": 409, "reason": "Conflict", "message": ""});
                return Ok(json_answer(StatusCode::CONFLICT, &status));
            }
            skiff_api::patch::strategic(&mut value, &patch, type_name).unwrap();
            let put = Request::put(&object).body(Body::from(value.to_string().into_bytes())).unwrap();
            api.call(put).await
        })
    }
}
