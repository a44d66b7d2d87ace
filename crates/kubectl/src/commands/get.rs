//! `kubectl get`.

use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::{
    cli::{self, Cli, Command},
    discovery::Resource,
    error::{Error, Result},
    flags::Flag,
    out::{self, say, tell},
    print::{
        Format, Printer, json as json_printer, jsonpath,
        table::{self, Options},
        tabs::Tabs,
    },
    rest::{TABLES, query},
    targets::{Selectors, Target},
};

pub(crate) const COMMAND: Command = Command {
    name: "get",
    about: "Display one or many resources",
    usage: "[(-o|--output=)json|yaml|name|wide|jsonpath|custom-columns] (TYPE[.VERSION][.GROUP] [NAME | -l label] | TYPE[.VERSION][.GROUP]/NAME ...) [flags]",
    flags: &[FLAGS, crate::print::FLAGS, cli::FILES, cli::SELECTOR],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::bool("all-namespaces", "If present, list the requested object(s) across all namespaces.").short('A'),
    Flag::int("chunk-size", "Return large lists in chunks rather than all at once.").or("500"),
    Flag::text("field-selector", "Selector (field query) to filter on, supports '=', '==', and '!='."),
    Flag::bool("ignore-not-found", "If set to true, suppresses NotFound error for specific objects that do not exist."),
    Flag::list("label-columns", "Comma separated list of labels that are going to be presented as columns.").short('L'),
    Flag::bool("no-headers", "When using the default or custom-column output format, don't print headers."),
    Flag::bool("output-watch-events", "Output watch event objects when --watch or --watch-only is used."),
    Flag::text("raw", "Raw URI to request from the server."),
    Flag::bool("server-print", "If true, have the server return the appropriate table output.").or("true"),
    Flag::bool("show-kind", "If present, list the resource type for the requested object(s)."),
    Flag::bool("show-labels", "When printing, show all labels as the last column"),
    Flag::text("sort-by", "If non-empty, sort list types using this field specification."),
    Flag::text("subresource", "If specified, gets the subresource of the requested object."),
    Flag::bool("watch", "After listing/getting the requested object, watch for changes.").short('w'),
    Flag::bool("watch-only", "Watch for changes to the requested object(s), without listing/getting first."),
];

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    if flags.given("raw") {
        if !cli.args().is_empty() {
            return Err(Error::text("arguments may not be passed when --raw is specified"));
        }
        out::bytes(&cli.rest()?.bytes(flags.text("raw")).await?);
        return Ok(());
    }
    let watch = flags.is("watch") || flags.is("watch-only");
    if flags.is("output-watch-events") && !watch {
        return Err(Error::text("--output-watch-events option can only be used with --watch or --watch-only"));
    }
    if cli.args().is_empty() && cli.file_names()?.is_empty() && !watch {
        tell!(
            "You must specify the type of resource to get. Use \"kubectl api-resources\" for a complete list of supported resources.\n"
        );
        return Err(cli.usage("Required resource not specified.\nUse \"kubectl explain <resource>\" for a detailed description of that resource (e.g. kubectl explain pods)."));
    }
    let printer = Printer::of(flags, true)?;
    let output = flags.text("output");
    if flags.is("show-labels") && !printer.is_human() {
        return Err(Error::text(format!("--show-labels option cannot be used with {output} printer")));
    }
    if watch {
        return Watch::new(cli, printer).await?.run().await;
    }
    let targets = cli.targets(cli.args(), true).await?;
    match printer.is_human() {
        true => tables(cli, &targets, &printer).await,
        false => objects(cli, &targets, &printer).await,
    }
}

fn table_options(cli: &Cli, resource: &Resource, printer: &Printer, kinds: bool) -> Options {
    let flags = &cli.flags;
    Options {
        wide: matches!(printer.format, Format::Wide),
        no_headers: flags.is("no-headers"),
        namespaces: flags.is("all-namespaces") && resource.namespaced,
        kind: (kinds || flags.is("show-kind")).then(|| resource.full_kind()),
        show_labels: flags.is("show-labels"),
        label_columns: flags.list("label-columns").to_vec(),
    }
}

/// Prints tables for people.
async fn tables(cli: &Cli, targets: &[Target], printer: &Printer) -> Result<()> {
    let sort_by = cli.flags.text("sort-by");
    let (mut answers, mut errors) = (Vec::new(), Vec::new());
    for target in targets {
        match table_of(cli, target, !sort_by.is_empty()).await {
            Ok(table) => answers.push((&target.resource, table)),
            Err(error @ Error::Unreachable { .. }) => return Err(error),
            Err(error) if error.is_not_found() && cli.flags.is("ignore-not-found") => {}
            Err(error) => errors.push(error),
        }
    }
    if !sort_by.is_empty() {
        let path = jsonpath::Template::parse(&jsonpath::relaxed(sort_by)?)?;
        for (_, table) in &mut answers {
            sort_rows(table, &path, sort_by)?;
        }
    }
    let kinds = answers.iter().any(|(resource, _)| resource.kind != answers[0].0.kind);
    let mut printed = false;
    let mut last: Option<(&Resource, table::Printer, String)> = None;
    let mut flush = |last: Option<(&Resource, table::Printer, String)>| {
        if let Some((_, _, lines)) = last.filter(|(_, _, lines)| !lines.is_empty()) {
            let separator = if printed && !cli.flags.is("no-headers") { "\n" } else { "" };
            out::text(&format!("{separator}{}", Tabs::of_tables().align(&lines)));
            printed = true;
        }
        printed
    };
    for (resource, answer) in &answers {
        if last.as_ref().is_none_or(|(before, ..)| before != resource) {
            flush(last.take());
            let options = table_options(cli, resource, printer, kinds);
            last = Some((resource, table::Printer::new(options), String::new()));
        }
        if let Some((_, printer, lines)) = &mut last {
            lines.push_str(&printer.lines(answer, None));
        }
    }
    if !flush(last) && errors.is_empty() && !cli.flags.is("ignore-not-found") {
        let namespaced = !cli.flags.is("all-namespaces") && answers.iter().all(|(resource, _)| resource.namespaced);
        match namespaced {
            true => tell!("No resources found in {} namespace.", cli.namespace()?),
            false => tell!("No resources found"),
        }
    }
    Error::all(errors)
}

/// The table of a target; with whole objects if rows are to be sorted by their fields.
async fn table_of(cli: &Cli, target: &Target, whole: bool) -> Result<Value> {
    let rest = cli.rest()?;
    let include = if whole { "Object" } else { "" };
    let subresource = cli.flags.text("subresource");
    if target.name.is_some() {
        let below = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
        let path = format!("{}{below}{}", target.path(), query(&[("includeObject", include)]));
        return Ok(as_table(rest.get_as(&path, TABLES).await?));
    }
    let selectors = Selectors::of(cli);
    let limit = if whole { "" } else { cli.flags.text("chunk-size") };
    let (mut table, mut next) = (Value::Null, String::new());
    loop {
        let parameters = [
            ("labelSelector", selectors.labels.as_str()),
            ("fieldSelector", selectors.fields.as_str()),
            ("includeObject", include),
            ("limit", limit),
            ("continue", next.as_str()),
        ];
        let page = as_table(rest.get_as(&format!("{}{}", target.path(), query(&parameters)), TABLES).await?);
        next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if table.is_null() {
            table = page;
        } else if let (Some(rows), Some(more)) = (table["rows"].as_array_mut(), page["rows"].as_array()) {
            rows.extend(more.iter().cloned());
        }
        if next.is_empty() {
            return Ok(table);
        }
    }
}

/// Servers may answer with the objects themselves.
fn as_table(answer: Value) -> Value {
    if answer["kind"] == "Table" {
        return answer;
    }
    match answer["items"].as_array() {
        Some(items) => table::of_objects(items),
        None => table::of_objects(&[answer]),
    }
}

fn sort_rows(table: &mut Value, path: &jsonpath::Template, text: &str) -> Result<()> {
    let Some(rows) = table["rows"].as_array_mut() else { return Ok(()) };
    let keys: Vec<Option<Value>> = rows.iter().map(|row| path.find(&row["object"]).into_iter().next()).collect();
    sort(rows, keys, text)
}

/// Sorts by keys that were found; those without one come first.
fn sort(values: &mut Vec<Value>, keys: Vec<Option<Value>>, text: &str) -> Result<()> {
    if !values.is_empty() && keys.iter().all(Option::is_none) {
        let path = jsonpath::relaxed(text)?;
        return Err(Error::text(format!("couldn't find any field with path {path:?} in the list of objects")));
    }
    let mut pairs: Vec<_> = keys.into_iter().zip(values.drain(..)).collect();
    pairs.sort_by(|(a, _), (b, _)| order(a.as_ref(), b.as_ref()));
    values.extend(pairs.into_iter().map(|(_, value)| value));
    Ok(())
}

fn order(a: Option<&Value>, b: Option<&Value>) -> std::cmp::Ordering {
    use std::cmp::Ordering;
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(Value::String(a)), Some(Value::String(b))) => {
            // Quantities are compared as what they are.
            let quantity = |text: &str| text.parse::<skiff_api::quantity::Quantity>().ok();
            match (quantity(a), quantity(b)) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => a.cmp(b),
            }
        }
        (Some(a), Some(b)) => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
    }
}

/// Prints the objects themselves.
async fn objects(cli: &Cli, targets: &[Target], printer: &Printer) -> Result<()> {
    let rest = cli.rest()?;
    let (mut found, mut errors, mut version) = (Vec::new(), Vec::new(), String::new());
    let single = matches!(targets, [target] if target.name.is_some());
    let subresource = cli.flags.text("subresource");
    for target in targets {
        let loaded = match &target.name {
            Some(_) if subresource.is_empty() => rest.get(&target.path()).await.map(|object| vec![object]),
            Some(_) => rest.get(&format!("{}/{subresource}", target.path())).await.map(|object| vec![object]),
            None => {
                let listed = cli.list(&target.resource, target.namespace.as_deref(), &Selectors::of(cli)).await;
                listed.map(|(_, objects)| {
                    version = String::new();
                    objects
                })
            }
        };
        match loaded {
            Ok(objects) => found.extend(objects),
            Err(error) if error.is_not_found() && cli.flags.is("ignore-not-found") => {}
            Err(error @ Error::Unreachable { .. }) => return Err(error),
            Err(error) if single => return Err(error),
            Err(error) => errors.push(error),
        }
    }
    let sort_by = cli.flags.text("sort-by");
    if !sort_by.is_empty() {
        let path = jsonpath::Template::parse(&jsonpath::relaxed(sort_by)?)?;
        let keys = found.iter().map(|object| path.find(object).into_iter().next()).collect();
        sort(&mut found, keys, sort_by)?;
    }
    if found.is_empty() && cli.flags.is("ignore-not-found") {
        return Error::all(errors);
    }
    match (single, found.as_slice()) {
        (true, [object]) => printer.print(object)?,
        _ => printer.print(&json!({
            "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version}, "items": found,
        }))?,
    }
    Error::all(errors)
}

/// `-w`: what is there, and what becomes of it.
struct Watch<'a> {
    cli: &'a Cli,
    printer: Printer,
    target: Target,
    table: table::Printer,
    selectors: Selectors,
}

impl<'a> Watch<'a> {
    async fn new(cli: &'a Cli, printer: Printer) -> Result<Watch<'a>> {
        if cli.flags.given("sort-by") {
            tell!("warning: --watch requested, --sort-by will be ignored for watch events received");
        }
        let mut targets = cli.targets(cli.args(), true).await?;
        let several = targets.iter().any(|target| target.resource != targets[0].resource);
        if several {
            return Err(Error::text("you may only specify a single resource type"));
        }
        if targets.len() > 1 {
            return Err(Error::text(
                "watch is only supported on individual resources and resource collections - more than 1 resource was found",
            ));
        }
        let target = targets.remove(0);
        let table = table::Printer::new(table_options(cli, &target.resource, &printer, false));
        let mut selectors = Selectors::of(cli);
        if let Some(name) = &target.name {
            selectors.fields = format!("metadata.name={name}");
        }
        Ok(Watch { cli, printer, target, table, selectors })
    }

    async fn run(mut self) -> Result<()> {
        let rest = self.cli.rest()?;
        let accept = if self.printer.is_human() { TABLES } else { "application/json" };
        let collection = self.target.resource.path(self.target.namespace.as_deref());
        let quiet = self.cli.flags.is("watch-only");
        let selectors = self.selectors.clone();
        let parameters = |more: &[(&str, &str)]| {
            let mut all =
                vec![("labelSelector", selectors.labels.as_str()), ("fieldSelector", selectors.fields.as_str())];
            all.extend_from_slice(more);
            query(&all)
        };
        if self.target.name.is_some() {
            // Said as for one that is not there.
            rest.get(&self.target.path()).await?;
        }
        let listed = rest.get_as(&format!("{collection}{}", parameters(&[])), accept).await?;
        let version = listed["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
        if !quiet {
            match self.printer.is_human() {
                true => self.show("ADDED", &as_table(listed))?,
                false => {
                    for item in listed["items"].as_array().into_iter().flatten() {
                        let mut item = item.clone();
                        item["apiVersion"] = self.target.resource.api_version().into();
                        item["kind"] = self.target.resource.kind.clone().into();
                        self.show("ADDED", &item)?;
                    }
                }
            }
        }
        let path = format!("{collection}{}", parameters(&[("watch", "true"), ("resourceVersion", &version)]));
        let mut events = rest.watch(&path, accept).await?;
        while let Some(event) = events.next().await {
            let event = event?;
            let kind = event["type"].as_str().unwrap_or_default();
            match kind {
                "ERROR" => return Err(Error::Status(event["object"].clone())),
                "BOOKMARK" => {}
                _ => self.show(kind, &event["object"])?,
            }
        }
        Ok(())
    }

    fn show(&mut self, event: &str, object: &Value) -> Result<()> {
        let events = self.cli.flags.is("output-watch-events");
        if self.printer.is_human() {
            let padded = format!("{event:<10}");
            let text = self.table.print(&as_table(object.clone()), events.then_some(&padded));
            out::text(&text);
            return Ok(());
        }
        if events && matches!(self.printer.format, Format::Json) {
            say!("{}", json_printer::to_string(&json!({"type": event, "object": object})).trim_end());
            return Ok(());
        }
        self.printer.print(object)
    }
}
