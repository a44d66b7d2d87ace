//! The image service.

use base64::Engine;
use skiff_cri::{ImageService, Request, Response, Status, v1};
use skiff_images::{Auth, Image, Reference};

use super::{Answers, list_stream};
use crate::error::{Error, Result};
use crate::runtime::Runtime;
use crate::supervisor::log::now_nanoseconds;

fn to_cri(image: &Image) -> v1::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok();
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        spec: Some(v1::ImageSpec { image: image.id.to_string(), ..Default::default() }),
        pinned: image.pinned,
    }
}

/// The credentials of a pull, in the order in which containerd looks at them.
fn auth(config: Option<v1::AuthConfig>) -> Result<Auth> {
    let Some(config) = config else { return Ok(Auth::Anonymous) };
    if !config.username.is_empty() {
        return Ok(Auth::Basic(config.username, config.password));
    }
    if !config.identity_token.is_empty() {
        return Ok(Auth::Basic("<token>".to_owned(), config.identity_token));
    }
    if !config.auth.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(&config.auth)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
        let (user, password) = pair.ok_or_else(|| Error::Invalid("invalid decoded auth".to_owned()))?;
        return Ok(Auth::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned()));
    }
    if !config.registry_token.is_empty() {
        return Ok(Auth::Bearer(config.registry_token));
    }
    Ok(Auth::Anonymous)
}

impl Runtime {
    fn images_matching(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        let name = filter.and_then(|filter| filter.image).unwrap_or_default().image;
        if name.is_empty() {
            return self.0.images.list().iter().map(|image| to_cri(image)).collect();
        }
        self.0.images.find(&name).iter().map(|image| to_cri(image)).collect()
    }

    async fn pull(&self, request: v1::PullImageRequest) -> Result<String> {
        let name = request.image.unwrap_or_default().image;
        let reference: Reference = name.parse()?;
        let auth = auth(request.auth)?;
        // To the end, though the caller give up: the next attempt finds what has come.
        let runtime = self.clone();
        let pulled =
            tokio::spawn(async move { runtime.0.images.pull(&reference, auth, &runtime.0.config.pull, |_| {}).await });
        let image = pulled.await.map_err(|e| Error::io("pull")(std::io::Error::other(e)))??;
        Ok(image.id.to_string())
    }
}

#[tonic::async_trait]
impl ImageService for Runtime {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> std::result::Result<Response<v1::ListImagesResponse>, Status> {
        let images = self.images_matching(request.into_inner().filter);
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    type StreamImagesStream = Answers<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> std::result::Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.images_matching(request.into_inner().filter);
        Ok(list_stream(images, |images| v1::StreamImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> std::result::Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let name = request.image.unwrap_or_default().image;
        let image = self.0.images.find(&name);
        let mut info = std::collections::BTreeMap::new();
        if let Some(image) = image.as_ref().filter(|_| request.verbose) {
            let text = serde_json::json!({
                "chainID": image.layers.last().map(ToString::to_string).unwrap_or_default(),
                "imageSpec": { "os": "linux", "config": image.config },
            });
            info.insert("info".to_owned(), text.to_string());
        }
        let image = image.map(|image| to_cri(&image));
        Ok(Response::new(v1::ImageStatusResponse { image, info }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> std::result::Result<Response<v1::PullImageResponse>, Status> {
        let image_ref = self.pull(request.into_inner()).await?;
        Ok(Response::new(v1::PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> std::result::Result<Response<v1::RemoveImageResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let store = self.0.images.clone();
        // CRI removes the image, not a name of it.
        let remove = move || match store.find(&name) {
            Some(image) => store.remove(&image.id.to_string()),
            None => Ok(()),
        };
        tokio::task::spawn_blocking(remove).await.map_err(|e| Status::internal(e.to_string()))?.map_err(Error::from)?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> std::result::Result<Response<v1::ImageFsInfoResponse>, Status> {
        let usage = self.0.images.usage();
        let filesystem = |path: &std::path::Path, bytes, inodes| v1::FilesystemUsage {
            timestamp: now_nanoseconds(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: path.display().to_string() }),
            used_bytes: Some(v1::UInt64Value { value: bytes }),
            inodes_used: Some(v1::UInt64Value { value: inodes }),
        };
        let images = filesystem(self.0.images.root(), usage.bytes, usage.entries);
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![images.clone()],
            container_filesystems: vec![images],
        }))
    }
}
