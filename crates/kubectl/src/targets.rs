//! What a command line is about: resources, names, selectors, files.

use serde_json::Value;

use crate::{
    cli::Cli,
    discovery::Resource,
    error::{Error, Result},
    files,
    rest::query,
};

/// Objects of one page of a list.
const CHUNK: &str = "500";

/// One object, or all of a kind.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) resource: Resource,
    /// `None` for all namespaces, and for what is in none.
    pub(crate) namespace: Option<String>,
    /// `None`: all that the selectors let through.
    pub(crate) name: Option<String>,
    /// The file that it was read from, or empty.
    pub(crate) source: String,
    /// What stands in that file.
    pub(crate) manifest: Value,
}

/// An object that is there.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) resource: Resource,
    pub(crate) object: Value,
}

impl Item {
    pub(crate) fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Empty for what is in none.
    pub(crate) fn namespace(&self) -> &str {
        self.object["metadata"]["namespace"].as_str().unwrap_or_default()
    }

    pub(crate) fn path(&self) -> String {
        self.resource.object_path(Some(self.namespace()), self.name())
    }
}

impl Target {
    pub(crate) fn path(&self) -> String {
        match &self.name {
            Some(name) => self.resource.object_path(self.namespace.as_deref(), name),
            None => self.resource.path(self.namespace.as_deref()),
        }
    }
}

/// What a list asks for besides its path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selectors {
    pub(crate) labels: String,
    pub(crate) fields: String,
}

impl Selectors {
    pub(crate) fn of(cli: &Cli) -> Selectors {
        Selectors { labels: cli.flags.text("selector").to_owned(), fields: cli.flags.text("field-selector").to_owned() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }
}

impl Cli {
    /// What files and arguments name. `lists`: a type alone means all of it.
    pub(crate) async fn targets(&self, args: &[String], lists: bool) -> Result<Vec<Target>> {
        let files = self.file_names()?;
        if !files.is_empty() {
            if !args.is_empty() {
                return Err(Error::text(
                    "when paths, URLs, or stdin is provided as input, you may not specify resource arguments as well",
                ));
            }
            return self.file_targets(&files).await;
        }
        self.argument_targets(args, lists).await
    }

    /// The manifests of `-f`.
    pub(crate) fn file_names(&self) -> Result<Vec<String>> {
        if self.flags.given("kustomize") {
            return Err(Error::text("-k is not supported by skiff's kubectl: render the manifests first, then use -f"));
        }
        Ok(self.flags.list("filename").to_vec())
    }

    /// The objects of manifests, with their resource and namespace.
    pub(crate) async fn file_targets(&self, names: &[String]) -> Result<Vec<Target>> {
        let manifests = files::read(names, self.flags.is("recursive")).await?;
        if manifests.is_empty() {
            let shown: Vec<_> = names.iter().map(String::as_str).collect();
            return Err(match shown.as_slice() {
                ["-"] => Error::text("no objects passed to ".to_owned() + &self.command),
                _ => Error::text(format!("no objects passed to {}", self.command)),
            });
        }
        let mut targets = Vec::new();
        for manifest in manifests {
            targets.push(self.manifest_target(manifest.object, &manifest.source).await?);
        }
        Ok(targets)
    }

    pub(crate) async fn manifest_target(&self, mut object: Value, source: &str) -> Result<Target> {
        let resource = self.resource_of(&object, source).await?.clone();
        let own = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let mut namespace = None;
        if resource.namespaced {
            let current = self.namespace()?;
            if !own.is_empty() && own != current && self.namespace_is_forced()? {
                return Err(Error::text(format!(
                    "the namespace from the provided object {own:?} does not match the namespace {current:?}. You must pass '--namespace={own}' to perform this operation."
                )));
            }
            let wanted = if own.is_empty() { current } else { own };
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.insert("namespace".into(), wanted.clone().into());
            }
            namespace = Some(wanted);
        }
        let name = object["metadata"]["name"].as_str().map(str::to_owned);
        Ok(Target { resource, namespace, name, source: source.to_owned(), manifest: object })
    }

    async fn argument_targets(&self, args: &[String], lists: bool) -> Result<Vec<Target>> {
        let selectors = Selectors::of(self);
        let all = self.flags.is("all");
        let all_namespaces = self.flags.is("all-namespaces");
        let namespace = if all_namespaces { None } else { Some(self.namespace()?) };
        let place = |resource: &Resource| namespace.clone().filter(|_| resource.namespaced);
        let target = |resource: &Resource, name: Option<&str>| Target {
            resource: resource.clone(),
            namespace: place(resource),
            name: name.map(str::to_owned),
            source: String::new(),
            manifest: Value::Null,
        };
        let Some(first) = args.first() else {
            return Err(Error::text(
                "You must provide one or more resources by argument or filename.\nExample resource specifications include:\n   '-f rsrc.yaml'\n   '--filename=rsrc.json'\n   '<resource> <name>'\n   '<resource>'",
            ));
        };
        let mut targets = Vec::new();
        if args.iter().any(|arg| arg.contains('/')) {
            for arg in args {
                let Some((kind, name)) = arg.split_once('/') else {
                    return Err(Error::text(format!(
                        "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. '{} get resource/<resource_name>' instead of '{} get resource resource/<resource_name>'",
                        "kubectl", "kubectl"
                    )));
                };
                if kind.is_empty() || name.is_empty() || name.contains('/') {
                    return Err(Error::text(
                        format!("arguments in resource/name form must have a single resource and name, got {arg:?}")
                            .replace(
                                "arguments in resource/name form must have a single resource and name, got",
                                "arguments in resource/name form must have a single resource and name, got",
                            ),
                    ));
                }
                let resource = self.resource(kind).await?;
                targets.push(target(resource, Some(name)));
            }
            if all {
                return Err(Error::text("setting 'all' parameter but found a non empty selector. "));
            }
            if all_namespaces {
                return Err(Error::text("a resource cannot be retrieved by name across all namespaces"));
            }
            return Ok(targets);
        }
        let mut resources = Vec::new();
        for name in first.split(',') {
            let members = self.discovery().await?.category(name);
            match members.is_empty() {
                true => resources.push(self.resource(name).await?),
                false => resources.extend(members),
            }
        }
        let names = &args[1..];
        if names.is_empty() {
            if !(lists || all || !selectors.is_empty()) {
                return Err(Error::text("resource(s) were provided, but no name was specified"));
            }
            return Ok(resources.into_iter().map(|resource| target(resource, None)).collect());
        }
        if !selectors.is_empty() {
            return Err(Error::text("name cannot be provided when a selector is specified"));
        }
        if all {
            return Err(Error::text("name cannot be provided when a selector is specified"));
        }
        if all_namespaces && resources.iter().any(|resource| resource.namespaced) {
            return Err(Error::text("a resource cannot be retrieved by name across all namespaces"));
        }
        if resources.len() > 1 {
            return Err(Error::text("you must specify only one resource"));
        }
        for resource in resources {
            targets.extend(names.iter().map(|name| target(resource, Some(name))));
        }
        Ok(targets)
    }

    /// The objects that targets are; what is not there comes as errors beside the others.
    pub(crate) async fn items(&self, targets: &[Target]) -> Result<(Vec<Item>, Vec<Error>)> {
        let (mut items, mut errors) = (Vec::new(), Vec::new());
        for target in targets {
            match self.load(target).await {
                Ok(objects) => {
                    items.extend(objects.into_iter().map(|object| Item { resource: target.resource.clone(), object }))
                }
                Err(error @ Error::Unreachable { .. }) => return Err(error),
                Err(error) => errors.push(error),
            }
        }
        Ok((items, errors))
    }

    /// The objects that arguments and files name; the first that is not there ends it.
    pub(crate) async fn all_items(&self, args: &[String]) -> Result<Vec<Item>> {
        let targets = self.targets(args, false).await?;
        let (items, errors) = self.items(&targets).await?;
        Error::all(errors)?;
        Ok(items)
    }

    async fn load(&self, target: &Target) -> Result<Vec<Value>> {
        let rest = self.rest()?;
        match target.name {
            Some(_) => Ok(vec![rest.get(&target.path()).await?]),
            None => Ok(self.list(&target.resource, target.namespace.as_deref(), &Selectors::of(self)).await?.1),
        }
    }

    /// A list's resourceVersion and its objects, which get their kind.
    pub(crate) async fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        selectors: &Selectors,
    ) -> Result<(String, Vec<Value>)> {
        let rest = self.rest()?;
        let (mut objects, mut next) = (Vec::new(), String::new());
        loop {
            let parameters = [
                ("labelSelector", selectors.labels.as_str()),
                ("fieldSelector", selectors.fields.as_str()),
                ("limit", CHUNK),
                ("continue", next.as_str()),
            ];
            let mut page = rest.get(&format!("{}{}", resource.path(namespace), query(&parameters))).await?;
            let api_version = page["apiVersion"].clone();
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                objects.extend(items.into_iter().map(|item| with_kind(item, &api_version, &resource.kind)));
            }
            next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if next.is_empty() {
                let version = page["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                return Ok((version.to_owned(), objects));
            }
        }
    }
}

/// Items of lists do not say what they are.
fn with_kind(mut item: Value, api_version: &Value, kind: &str) -> Value {
    if let Some(map) = item.as_object_mut() {
        map.entry("apiVersion").or_insert_with(|| api_version.clone());
        map.entry("kind").or_insert_with(|| kind.into());
    }
    item
}
