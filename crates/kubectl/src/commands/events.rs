//! `kubectl events`.

use futures::StreamExt as _;
use serde_json::Value;

use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::{self, tell},
    print::{Printer, tabs::Tabs},
    rest::query,
    time,
};

pub(crate) const COMMAND: Command = Command {
    name: "events",
    about: "List events",
    usage: "[(-o|--output=)json|yaml] [--for TYPE/NAME] [--watch] [--types=Normal,Warning]",
    flags: &[FLAGS, crate::print::FLAGS],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::bool("all-namespaces", "If present, list the requested object(s) across all namespaces.").short('A'),
    Flag::text("for", "Filter events to only those pertaining to the specified resource."),
    Flag::bool("no-headers", "When using the default output format, don't print headers."),
    Flag::list("types", "Output only events of given types."),
    Flag::bool("watch", "After listing the requested events, watch for more events.").short('w'),
];

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let rest = cli.rest()?;
    let everywhere = flags.is("all-namespaces");
    let mut path = match everywhere {
        true => "/api/v1/events".to_owned(),
        false => format!("/api/v1/namespaces/{}/events", cli.namespace()?),
    };
    let mut fields = String::new();
    if let Some(text) = flags.some("for") {
        let Some((kind, name)) = text.split_once('/') else {
            return Err(Error::text("--for must be in resource/name form"));
        };
        let resource = cli.resource(kind).await?;
        let version = resource.api_version();
        fields = format!(
            "involvedObject.apiVersion={version},involvedObject.kind={},involvedObject.name={name}",
            resource.kind
        );
        if !resource.namespaced {
            path = "/api/v1/events".to_owned();
        }
    }
    let types = flags.list("types");
    let wanted = |event: &Value| {
        types.is_empty()
            || types.iter().any(|kind| event["type"].as_str().is_some_and(|t| t.eq_ignore_ascii_case(kind)))
    };
    let list = rest.get(&format!("{path}{}", query(&[("fieldSelector", &fields)]))).await?;
    let mut events: Vec<Value> =
        list["items"].as_array().into_iter().flatten().filter(|event| wanted(event)).cloned().collect();
    events.sort_by(|a, b| last_seen(a).cmp(last_seen(b)));
    let printer = Printer::of(flags, false)?;
    if !printer.is_human() {
        let mut whole = list.clone();
        whole["items"] = events.into();
        return printer.print(&whole);
    }
    let mut tabs = Tabs::of_tables();
    if events.is_empty() && !flags.is("watch") {
        match everywhere {
            true => tell!("No events found."),
            false => tell!("No events found in {} namespace.", cli.namespace()?),
        }
        return Ok(());
    }
    let mut table = String::new();
    if !flags.is("no-headers") {
        table.push_str(if everywhere { "NAMESPACE\t" } else { "" });
        table.push_str("LAST SEEN\tTYPE\tREASON\tOBJECT\tMESSAGE\n");
    }
    events.iter().for_each(|event| table.push_str(&row(event, everywhere)));
    out::text(&tabs.align(&table));
    if !flags.is("watch") {
        return Ok(());
    }
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let parameters = [("fieldSelector", fields.as_str()), ("watch", "true"), ("resourceVersion", version)];
    let mut changes = rest.watch(&format!("{path}{}", query(&parameters)), "application/json").await?;
    while let Some(change) = changes.next().await {
        let change = change?;
        match change["type"].as_str() {
            Some("ERROR") => return Err(Error::Status(change["object"].clone())),
            Some("ADDED" | "MODIFIED") if wanted(&change["object"]) => {
                out::text(&tabs.align(&row(&change["object"], everywhere)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn last_seen(event: &Value) -> &str {
    let times = [&event["series"]["lastObservedTime"], &event["lastTimestamp"], &event["eventTime"]];
    times.into_iter().find_map(Value::as_str).unwrap_or_default()
}

fn row(event: &Value, everywhere: bool) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let since = |value: &Value| value.as_str().map_or("<unknown>".to_owned(), time::age);
    let first = match event["eventTime"].as_str() {
        Some(_) => since(&event["eventTime"]),
        None => since(&event["firstTimestamp"]),
    };
    let count = event["count"].as_i64().unwrap_or(0);
    let seen = if event["series"].is_object() {
        let series = &event["series"];
        format!("{} (x{} over {first})", since(&series["lastObservedTime"]), series["count"])
    } else if count > 1 {
        format!("{} (x{count} over {first})", since(&event["lastTimestamp"]))
    } else {
        first
    };
    let about = &event["involvedObject"];
    let place = if everywhere { format!("{}\t", text(&event["metadata"]["namespace"])) } else { String::new() };
    format!(
        "{place}{seen}\t{}\t{}\t{}/{}\t{}\n",
        text(&event["type"]),
        text(&event["reason"]),
        text(&about["kind"]),
        text(&about["name"]),
        text(&event["message"]).trim()
    )
}
